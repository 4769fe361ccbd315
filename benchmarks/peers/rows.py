"""What is compared: a figure of ours beside a peer's, and who has the better of it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["lower", "higher"]
Verdict = Literal["ours", "theirs", "even", "agreement"]
DRAWS, INTERVAL = 2000, 0.95
LEVEL = 0.02


@dataclass(frozen=True)
class Row:
    """One figure of both sides.

    ``value`` is ours over theirs (``kind="ratio"``), ours less theirs (``"difference"``) or how far both agree
    (``"agreement"``, where nobody wins); ``low`` to ``high`` are the quartiles of its ``n`` rounds, or its 95%
    bootstrap interval over ``n`` cases. ``ours_untouched``: ours over the untouched model of the same side, where there
    is one.
    """

    figure: str
    case: str
    ours: float
    theirs: float
    unit: str
    better: Better
    kind: Literal["ratio", "difference", "agreement"]
    value: float
    low: float
    high: float
    n: int
    ours_untouched: float | None = None
    theirs_untouched: float | None = None

    def verdict(self) -> Verdict:
        """Whose figure is better: neither's where the interval holds a tie, give or take 2% of a ratio."""
        if self.kind == "agreement":
            return "agreement"
        low, high = (1 - LEVEL, 1 + LEVEL) if self.kind == "ratio" else (0.0, 0.0)
        if self.low > high:
            return "ours" if self.better == "higher" else "theirs"
        if self.high < low:
            return "ours" if self.better == "lower" else "theirs"
        return "even"

    def plain(self) -> dict[str, Any]:
        """The row as it is stored."""
        return asdict(self)


def timed(
    figure: str,
    case: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    untouched: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Row:
    """Compare seconds measured in turns, round by round."""
    ratios = paired(ours, theirs)
    value, low, high = rounded(statistics.median(ratios), *quartiles(ratios))
    sides = rounded(*(1000 * statistics.median(side) for side in (ours, theirs)))
    over: tuple[float, ...] | tuple[None, None] = (None, None)
    if untouched is not None:
        pairs = zip((ours, theirs), untouched, strict=True)
        over = rounded(*(statistics.median(paired(side, base)) for side, base in pairs))
    return Row(figure, case, *sides, "ms", "lower", "ratio", value, low, high, len(ratios), *over)


def exact(figure: str, case: str, ours: float, theirs: float, unit: str, better: Better = "lower") -> Row:
    """Compare two numbers that no chance enters, such as bytes."""
    value = round(ours / theirs, 4)
    return Row(figure, case, round(ours, 4), round(theirs, 4), unit, better, "ratio", value, value, value, 1)


def graded(figure: str, case: str, ours: Sequence[float], theirs: Sequence[float], unit: str = "") -> Row:
    """Compare marks of the same cases, 0 to 1, by the mean of their differences."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    draw, count = random.Random(0), len(differences)
    means = sorted(statistics.fmean(draw.choices(differences, k=count)) for _ in range(DRAWS))
    edge = (1 - INTERVAL) / 2
    low, high = means[int(edge * DRAWS)], means[int((1 - edge) * DRAWS) - 1]
    sides = (statistics.fmean(ours), statistics.fmean(theirs))
    value = statistics.fmean(differences)
    return Row(figure, case, *rounded(*sides), unit, "higher", "difference", *rounded(value, low, high), count)


def agreed(figure: str, case: str, values: Sequence[float], unit: str) -> Row:
    """State how far both agree, with quartiles."""
    value, low, high = rounded(statistics.median(values), *quartiles(values), digits=6)
    return Row(figure, case, value, value, unit, "higher", "agreement", value, low, high, len(values))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    held = sorted(values)
    return held[len(held) // 4], held[min(len(held) - 1, 3 * len(held) // 4)]


def rounded(*values: float, digits: int = 4) -> tuple[float, ...]:
    """Return ``values`` as they are stored."""
    return tuple(round(value, digits) for value in values)
