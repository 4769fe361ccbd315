"""``tithe compare``: two runs of ``tithe bench`` beside each other, case by case."""

from __future__ import annotations

from typing import Annotated

import typer

from tithe.cli.console import console, emit
from tithe.cli.options import Json

SIDE = "A journal, journal#run, or journal::method@keep."
First = Annotated[str, typer.Argument(help=SIDE, metavar="A")]
Second = Annotated[str, typer.Argument(help=SIDE, metavar="B")]


def compare(first: First, second: Second, json: Json = False) -> None:
    """Compare two runs on the cases that both have: paired differences from A to B, and what they say."""
    from tithe.bench.compare import Side
    from tithe.bench.compare import compare as compared
    from tithe.cli.tables import changes

    found = compared(Side.read(first), Side.read(second))
    screen = console(json)
    screen.print(changes(found, first, second))
    for name, one, other in found.differing:
        screen.print(f"not the same: {name}, {one} and {other}", markup=False, highlight=False)
    for side, count in ((first, found.only_first), (second, found.only_second)):
        if count:
            screen.print(f"only in {side}: {count} pieces of work", markup=False, highlight=False)
    if json:
        emit(found.to_dict())
