"""Options that several commands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tithe.errors import BadInput, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

    from tithe.bench.ask import Where
    from tithe.bench.prompt import Prompt
    from tithe.zoo import Loaded

Model = Annotated[str, typer.Option("--model", "-m", help="zoo:llm, zoo:vlm, zoo:vit, a folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the checkpoint bring and run its own code.")]
Param = Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value, for every method that has it.")]
Question = Annotated[str, typer.Option("--question-at", help="Ask inside the prompt, or after its compression.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the last thing on stdout.")]
Text = Annotated[str | None, typer.Option("--prompt", help="The text to read.")]
File = Annotated[Path | None, typer.Option("--file", "-f", help="A UTF-8 file to read instead.")]
Picture = Annotated[Path | None, typer.Option("--image", "-i", help="A picture to look at.")]
Asked = Annotated[str, typer.Option("--question", "-q", help="What to ask about the text or the picture.")]
Room = Annotated[int, typer.Option("--max-new-tokens", help="Tokens to write.")]
