"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", help="zoo:llm, reader, ssm, vlm, scenes, vit, vim; a folder; a hub id")
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the checkpoint bring and run its own code.")]
Methods = Annotated[
    str, typer.Option(help="Slugs by comma; a+b act together; slug:name=value has parameters of its own.")
]
Keeps = Annotated[str, typer.Option("--keep", "-k", help="Budgets by comma: with a dot fractions, without one counts.")]
Param = Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value, for every method that has it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the last thing on stdout.")]
Text = Annotated[str | None, typer.Option("--prompt", help="The text to read.")]
File = Annotated[Path | None, typer.Option("--file", "-f", help="A UTF-8 text file to read instead.")]
Question = Annotated[str, typer.Option("--question", "-q", help="What to ask about the text or the picture.")]
After = Annotated[bool, typer.Option("--after", help="Compress first and ask afterwards, not inside the prompt.")]
Room = Annotated[int, typer.Option("--max-new-tokens", help="Tokens to write at most.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The page to write.")]
