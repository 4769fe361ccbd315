"""ARISE: does more thinking pay, sample by sample; for runs of test-time scaling.

Yin et al. 2025, arXiv:2510.06014. Paper-only: no authors' code was found, nor could the paper be read beyond its
abstract and summaries of it. The equations and the defaults of `Stability` are those of a third party's implementation
("ARISE: Adaptive Resolution-Aware Scaling Evaluation Metric", a public repository); they follow the rules that the
summaries state: a sample that gains with few further tokens counts for more than one that needs many, one that loses
counts against, the more so the more tokens it spent on losing, and what varies more is run more often.

`scaling_metric`, the slope that ARISE is set against, is that of s1 (Muennighoff et al. 2025, arXiv:2501.19393).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean, pstdev

from tithe.errors import BadInput
from tithe.types import Card

CARD = Card(
    "arise-metric",
    "ARISE: An Adaptive Resolution-Aware Metric for Test-Time Scaling Evaluation in Large Reasoning Models",
    2025,
    "2510.06014",
    None,
    "measure",
    (),
    "paper-only",
    "none",
    "What further thinking is worth, sample by sample: gains count by the tokens that they took, losses against.",
)
Point = tuple[float, float]


@dataclass(frozen=True)
class Stability:
    """When a sample at one budget was run often enough.

    Between ``least`` and ``most`` runs, until the coefficients of variation (population deviation over mean, 0 for a
    mean of 0) of the accuracies and of the tokens sum to ``threshold`` or less.
    """

    least: int = 3
    most: int = 10
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.threshold < 0:
            raise BadInput(f"need 1 <= least <= most and threshold >= 0, got {self}.")


@dataclass(frozen=True)
class Measured:
    """Means of ``runs`` runs of one sample at one budget, and the ``variation`` that was left."""

    tokens: float
    accuracy: float
    runs: int
    variation: float

    @property
    def point(self) -> Point:
        """Tokens and accuracy, as the metrics take them."""
        return self.tokens, self.accuracy


def sample_score(points: Sequence[Point]) -> float:
    """Return the score of one sample from its ``(tokens, accuracy)`` at each budget, the smallest budget first.

    Each step from one budget to the next adds ``gain * (before / after) ** sign(gain)`` of accuracy and tokens: 1 for a
    gain at no further tokens, less the more it cost; -1 for such a loss, and worse the more was spent on it.

    Raises:
        BadInput: a count of tokens that is not positive.
    """
    if any(tokens <= 0 for tokens, _ in points):
        raise BadInput("tokens must be positive at every budget.")
    score = 0.0
    for (before, was), (after, now) in pairwise(points):
        gain = now - was
        score += gain * (before / after if gain > 0 else after / before)
    return score


def arise(samples: Sequence[Sequence[Point]]) -> float:
    """Return the mean score of all samples.

    Raises:
        BadInput: no samples, or not the same budgets, two at least, for all.
    """
    _check(samples)
    return fmean(map(sample_score, samples))


def scaling_metric(samples: Sequence[Sequence[Point]]) -> float:
    """Return the mean slope of accuracy over tokens, of the means over samples, between all pairs of budgets.

    Per token, as s1 defines it; a sample that loses is hidden by one that gains. Pairs of equal tokens have no slope
    and are left out.

    Raises:
        BadInput: as ``arise``, or no pair of budgets that differ in tokens.
    """
    _check(samples)
    means = [
        (fmean(tokens for tokens, _ in column), fmean(accuracy for _, accuracy in column))
        for column in zip(*samples, strict=True)
    ]
    slopes = [(b - a) / (after - before) for (before, a), (after, b) in combinations(means, 2) if after != before]
    if not slopes:
        raise BadInput("all budgets used as many tokens; there is no slope between them.")
    return fmean(slopes)


def variation(runs: Sequence[Point]) -> float:
    """Return the coefficients of variation of the tokens and of the accuracies, added."""
    return sum(_variation(values) for values in zip(*runs, strict=True))


def measure(run: Callable[[], Point], until: Stability | None = None) -> Measured:
    """Run one sample at one budget until its tokens and accuracy hold still, and return their means."""
    until = until or Stability()
    runs = [run() for _ in range(until.least)]
    while len(runs) < until.most and variation(runs) > until.threshold:
        runs.append(run())
    tokens, accuracies = zip(*runs, strict=True)
    return Measured(fmean(tokens), fmean(accuracies), len(runs), variation(runs))


def _variation(values: Iterable[float]) -> float:
    held = tuple(values)
    mean = fmean(held)
    return pstdev(held) / mean if mean else 0.0


def _check(samples: Sequence[Sequence[Point]]) -> None:
    budgets = {len(points) for points in samples}
    if len(budgets) != 1 or min(budgets) < 2:
        raise BadInput(f"every sample needs the same budgets, two at least; got {sorted(budgets) or 'no samples'}.")
