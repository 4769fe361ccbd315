"""Bayesian optimisation of a costly function of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.errors import BadInput

SCALES = (0.1, 0.2, 0.4, 0.8, 1.6)
NOISE = 1e-4
CANDIDATES = 1024

Point = tuple[float, ...]


@dataclass(frozen=True)
class Process:
    """A Gaussian process (Matern 5/2) over ``points [n, d]`` of the unit cube, of standardised ``values [n]``."""

    points: Tensor
    values: Tensor
    scale: float

    def factor(self) -> tuple[Tensor, Tensor]:
        """Return the Cholesky factor of the kernel, and the kernel's inverse times the values."""
        kernel = matern(self.points, self.points, self.scale)
        lower = torch.linalg.cholesky(kernel + NOISE * torch.eye(len(kernel), dtype=kernel.dtype))
        return lower, torch.cholesky_solve(self.values[:, None], lower)[:, 0]

    def likelihood(self) -> float:
        """Return the log marginal likelihood, less a constant."""
        lower, weights = self.factor()
        return float(-0.5 * self.values @ weights - lower.diagonal().log().sum())

    def expected_improvement(self, where: Tensor) -> Tensor:
        """Return how much more than the best value so far is expected at ``where [m, d]``."""
        lower, weights = self.factor()
        across = matern(where, self.points, self.scale)
        mean = across @ weights
        spread = torch.linalg.solve_triangular(lower, across.T, upper=False).square().sum(0)
        deviation = (1 - spread).clamp(min=1e-12).sqrt()
        gain = mean - self.values.max()
        z = gain / deviation
        normal = torch.distributions.Normal(0.0, 1.0)
        return gain * normal.cdf(z) + deviation * normal.log_prob(z).exp()


def matern(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the Matern 5/2 kernel ``[n, m]`` of ``a [n, d]`` and ``b [m, d]``."""
    apart = (a[:, None] - b[None]).square().sum(-1).sqrt() * math.sqrt(5) / scale
    return (1 + apart + apart.square() / 3) * torch.exp(-apart)


def fitted(points: Tensor, values: Tensor) -> Process:
    """Return the process of the likeliest scale."""
    standard = (values - values.mean()) / values.std().clamp(min=1e-9)
    return max((Process(points, standard, scale) for scale in SCALES), key=Process.likelihood)


def maximised(
    function: Callable[[Point], float],
    bounds: Sequence[tuple[float, float]],
    allowed: Callable[[Point], bool],
    initial: int,
    steps: int,
    seed: int,
) -> list[tuple[Point, float]]:
    """Return every point tried and its value, in order: ``initial`` ones at random, then ``steps`` chosen.

    Each of these is the best by expected improvement among candidates drawn evenly and around the best point so far.

    Args:
        bounds: the least and the most of each number.
        allowed: whether a point may be tried.

    Raises:
        BadInput: no point within the bounds is allowed, or ``initial`` is less than 2.
    """
    if initial < 2 or steps < 0:
        raise BadInput(f"initial={initial!r}, steps={steps!r}: give at least 2 points to begin with.")
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    draw = torch.Generator().manual_seed(seed)

    def point(unit: Tensor) -> Point:
        return tuple((low + unit * (high - low)).tolist())

    def some(count: int, around: Tensor | None) -> Tensor:
        units = torch.rand(count, len(low), generator=draw, dtype=torch.float64)
        if around is not None:
            units = (around + 0.1 * torch.randn(units.shape, generator=draw, dtype=torch.float64)).clamp(0, 1)
        return units[torch.tensor([allowed(point(unit)) for unit in units])]

    first = some(initial * 100, None)[:initial]
    if len(first) < 2:
        raise BadInput("No point within the bounds is allowed.")
    units, values = list(first), [function(point(unit)) for unit in first]
    for _ in range(steps):
        best = units[max(range(len(values)), key=values.__getitem__)]
        candidates = torch.cat([some(CANDIDATES, None), some(CANDIDATES // 4, best)])
        process = fitted(torch.stack(units), torch.tensor(values, dtype=torch.float64))
        units.append(candidates[process.expected_improvement(candidates).argmax()])
        values.append(function(point(units[-1])))
    return [(point(unit), value) for unit, value in zip(units, values, strict=True)]
