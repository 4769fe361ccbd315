"""Who does no better than chance, and where: rows of a benchmark beside the random baseline of the same budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tithe.bench.rows import Row
    from tithe.budget import Keep

RANDOM = "random"


@dataclass(frozen=True)
class Loser:
    """A method that, at this budget and on this task, is no better than keeping tokens at random.

    ``quality`` and ``chance``: its own and that of the best random baseline beside it; equal ones count as lost, unless
    both are the untouched model's, where the budget was too generous to tell.
    """

    model: str
    task: str
    question: str | None
    method: str
    keep: Keep
    quality: float
    chance: float


def losers(rows: Iterable[Row | dict[str, Any]]) -> list[Loser]:
    """Return every method that random choice equals or beats at the same budget, in the order of ``rows``.

    Takes rows of a `Result`, or the same as JSON. A method without a budget, and rows without a random baseline at
    theirs, are passed over; so are the baselines themselves.
    """
    told = [row if isinstance(row, dict) else vars(row) for row in rows]
    chance: dict[tuple[Any, ...], float] = {}
    for row in told:
        if is_random(row["method"]):
            at = _place(row)
            chance[at] = max(row["quality"], chance.get(at, row["quality"]))
    found = []
    for row in told:
        best = chance.get(_place(row))
        if row["keep"] is None or best is None or _baseline(row["method"]):
            continue
        if row["quality"] < best or row["quality"] == best < row["quality_full"]:
            place = {name: row[name] for name in ("model", "task", "question", "method", "keep", "quality")}
            found.append(Loser(**place, chance=best))
    return found


def is_random(method: str) -> bool:
    """Whether a label names a baseline of chance, with or without parameters of its own."""
    return method.split(":")[0].split("-")[0] == RANDOM


def _baseline(method: str) -> bool:
    from tithe import catalogue

    factory = catalogue.factories().get(method.split(":")[0].strip())
    return "+" not in method and factory is not None and factory.card.fidelity == "definition"


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in ("model", "task", "question", "keep", "n", "seed")), row.get("length"))
