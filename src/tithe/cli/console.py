"""Where things are printed: JSON last on stdout, tables beside it or on stderr, progress always on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WIDE = 160


def console(as_json: bool) -> Console:
    """Return where tables go: stdout, or stderr where stdout is for JSON. A file or a pipe has room for whole lines."""
    screen = Console(stderr=as_json)
    return screen if screen.is_terminal else Console(stderr=as_json, width=WIDE)


def emit(payload: dict[str, Any]) -> None:
    """Print JSON as the last thing on stdout; a number that is none becomes null."""
    typer.echo(json.dumps(_finite(payload), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(error: Exception) -> str:
    """Return what an error says without line breaks."""
    return " ".join(str(error).split())


class Bars:
    """Progress bars, one for each stretch of work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def bar(self, name: str) -> Bar:
        """Return a new bar called ``name``."""
        return Bar(self._progress, name)


class Bar:
    """One bar; calling it says how much is done, of how much, and what comes now."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self._task = progress.add_task(name, total=None)

    def __call__(self, done: int, total: int, label: str) -> None:
        """Move on."""
        text = self._name if done == total else f"{self._name} · {label}"
        self._progress.update(self._task, completed=done, total=total, description=text)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show progress on stderr while the block runs, where somebody watches: a log gets what was found, and errors."""
    spent = (TimeElapsedColumn(), TextColumn("· left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *spent)
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        yield Bars(progress)
