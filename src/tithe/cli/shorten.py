"""``tithe shorten``: the parts of a file that are worth reading for a question, for any engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text as Line

from tithe.cli.console import console, emit
from tithe.cli.inputs import writable
from tithe.cli.options import Device, Dtype, Json, Model, Param, Question, Trust
from tithe.errors import BadInput
from tithe.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

    from tithe.shorten import Shortened, Span

Document = Annotated[Path, typer.Argument(metavar="FILE", help="A UTF-8 text file.", show_default=False)]
Method = Annotated[str, typer.Option("--method", help="gemfilter, promptdistill, xl3m: what chooses prompt tokens.")]
Keep = Annotated[str, typer.Option("--keep", "-k", help="Of the file: with a dot a fraction, without one a count.")]
Whole = Annotated[str, typer.Option("--whole", help="Keep single tokens (none), or only whole words or lines.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The file to write the short prompt to.")]

NEAR = 60


def shorten(
    file: Document,
    question: Question = "",
    keep: Keep = "0.1",
    model: Model = "zoo:llm",
    method: Method = "gemfilter",
    whole: Whole = "none",
    param: Param = None,
    out: Out = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Choose what of a file is worth reading for a question: a short prompt, as text and token ids, for any engine."""
    from tithe.bench import specs
    from tithe.bench.prompt import read_text, tokenizer_of
    from tithe.shorten import check_emits, check_whole
    from tithe.shorten import shorten as shortened
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    budget, params = specs.parse_keep(keep), specs.parse_params(param or [])
    check_emits(method)
    specs.collect([method], params)
    unit, text = check_whole(whole), read_text(file)
    if not text.strip():
        raise BadInput(f"file='{file}' is empty: there is nothing to choose from.")
    target = writable(out) if out is not None else None
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if loaded.kind == "vit":
        raise BadInput(f"model={model!r} reads pictures only; give a language model.")
    given: dict[str, Any] = {"question": question, "method": method, "keep": budget, "whole": unit}
    with quiet():
        found = shortened(loaded.model, tokenizer_of(loaded), text, **given, **params)
    if target is not None:
        write_text(target, found.text)
    if json:
        emit(
            {"model": model, "file": str(file), **given, "params": params, "out": out and str(target)} | found.to_dict()
        )
        return
    show(console(False), text, found)
    if target is not None:
        typer.echo(f"wrote {target}", err=True)


def show(screen: Console, text: str, found: Shortened) -> None:
    """Print the text with what is kept bright, and what is dropped dim; long stretches of that by their ranges alone.

    Where there are no styles to tell them apart, all that is dropped is left out.
    """
    line, plain = Line(), not screen.is_terminal
    kept = set(found.spans)
    for span in sorted((*found.spans, *found.dropped), key=lambda span: span.first):
        part = text[span.start : span.stop]
        if span in kept:
            line.append(part, style="bold")
        elif len(part) <= NEAR and not plain:
            line.append(part, style="dim")
        else:
            line.append(elided(span), style="dim")
    screen.print(line, soft_wrap=True, highlight=False)
    share, total = found.share
    where = f"{share} of {total} tokens of the file in {len(found.spans)} spans"
    screen.print(f"kept {where}; the prompt has {len(found.ids)} tokens instead of {found.total}.", highlight=False)


def elided(span: Span) -> str:
    """Return what stands for a stretch that is not shown."""
    return f"[… {span.last - span.first} tokens, characters {span.start} to {span.stop} …]"
