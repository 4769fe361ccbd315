"""What a mean over a few cases is worth: bootstrap intervals of paired differences, and what they allow to say.

Percentile bootstrap (Efron 1979) with percentiles moved outwards for few cases (Hesterberg 2015, arXiv:1411.5279,
section 5.3: those of Student's t on n - 1 degrees, and a factor of sqrt(n / (n - 1))). Where no case differs from
another a bootstrap would claim certainty: there the interval is what n cases without an event leave open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

Verdict = Literal["better", "worse", "equal", "too few"]

LEVEL = 0.95
RESAMPLES = 2000
MARGIN = 0.02
LEAST = 2


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95% interval; both None for fewer than two cases, which leave everything open.

    ``needed``: about how many cases would bring the interval down to `MARGIN` either way, None where nothing tells.
    """

    mean: float
    low: float | None
    high: float | None
    needed: int | None = None


def interval(values: Sequence[float], span: float | None = None, seed: int = 0) -> Interval:
    """Return the mean of ``values`` with its 95% bootstrap interval.

    Args:
        values: one per case, each an independent draw.
        span: the farthest from 0 that a mean can lie, such as 1 for shares and for differences of them; None: no limit
            is known, and equal values are taken for exact.
        seed: of the resampling.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values: an interval needs at least one case.")
    told = np.asarray(values, float)
    n, mean = len(told), fmean(values)
    if n < LEAST:
        return Interval(mean, None, None)
    if np.ptp(told) == 0:
        room = 0.0 if span is None else span * unseen(n)
        least = n if span is None else math.ceil(math.log(1 - LEVEL) / math.log1p(-MARGIN / span))
        return Interval(mean, *_within(mean - room, mean + room, span), max(n, least))
    draw = np.random.Generator(np.random.PCG64(seed))
    means = (draw.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ told) / n
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student(LEVEL, n - 1))
    low, high = (float(end) for end in np.quantile(means, (tail, 1 - tail)))
    half = max(high - mean, mean - low)
    return Interval(mean, *_within(low, high, span), max(n, math.ceil(n * (half / MARGIN) ** 2)))


def unseen(n: int, level: float = LEVEL) -> float:
    """Return the largest share of cases that may differ although none of ``n`` did (about 3 / n)."""
    return float(1 - (1 - level) ** (1 / n))


def student(level: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t (Hill's expansion; within 1% of it from 3 degrees on)."""
    if degrees == 1:
        return math.tan(math.pi * level / 2)
    if degrees == 2:
        return level * math.sqrt(2 / (1 - level**2))
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def verdict(found: Interval, margin: float = MARGIN) -> Verdict:
    """Return what a paired difference says: ``equal`` within ``margin`` either way, else its sign, else ``too few``."""
    if found.low is None or found.high is None:
        return "too few"
    if -margin <= found.low and found.high <= margin:
        return "equal"
    if found.high < 0:
        return "worse"
    return "better" if found.low > 0 else "too few"


def paired(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the differences case by case.

    Raises:
        ValueError: not as many of one as of the other.
    """
    return [one - other for one, other in zip(mine, theirs, strict=True)]


def _within(low: float, high: float, span: float | None) -> tuple[float, float]:
    return (low, high) if span is None else (max(low, -span), min(high, span))
