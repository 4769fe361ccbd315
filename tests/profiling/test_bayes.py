from __future__ import annotations

import math

import pytest
import torch

from tithe.errors import BadInput
from tithe.profiling.bayes import NOISE, Point, Process, matern, maximised

BOUNDS = ((-2.0, 2.0), (0.0, 5.0))


def hill(point: Point) -> float:
    """One top, at (0.7, 3.1), of height 0."""
    return -((point[0] - 0.7) ** 2) - 0.5 * (point[1] - 3.1) ** 2


def anywhere(point: Point) -> bool:
    return True


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_top_where_as_many_random_points_do_not(seed: int) -> None:
    tried = maximised(hill, BOUNDS, anywhere, 5, 20, seed)
    chance = maximised(hill, BOUNDS, anywhere, 25, 0, seed)
    assert len(tried) == len(chance) == 25
    assert max(value for _, value in tried) > -0.01 > max(value for _, value in chance)
    assert all(value == hill(point) for point, value in tried)


def test_points_are_within_bounds_and_allowed() -> None:
    def below(point: Point) -> bool:
        return point[1] < 1.5

    tried = maximised(hill, BOUNDS, below, 4, 8, 0)
    assert all(-2 <= a <= 2 and 0 <= b < 1.5 for (a, b), _ in tried)
    assert tried == maximised(hill, BOUNDS, below, 4, 8, 0) != maximised(hill, BOUNDS, below, 4, 8, 1)


def test_expected_improvement_against_sampling() -> None:
    """The integral of what is gained over the best value, by a million draws from the posterior."""
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(5, 2, generator=draw, dtype=torch.float64)
    values = torch.randn(5, generator=draw, dtype=torch.float64)
    where = torch.rand(3, 2, generator=draw, dtype=torch.float64)
    ours = Process(points, values, 0.4).expected_improvement(where)
    kernel = matern(points, points, 0.4) + NOISE * torch.eye(5, dtype=torch.float64)
    across = matern(where, points, 0.4)
    mean = across @ torch.linalg.solve(kernel, values)
    variance = 1 - (across * torch.linalg.solve(kernel, across.T).T).sum(-1)
    for n in range(3):
        drawn = mean[n] + variance[n].sqrt() * torch.randn(1_000_000, generator=draw, dtype=torch.float64)
        assert (drawn - values.max()).clamp(min=0).mean().item() == pytest.approx(ours[n].item(), abs=3e-3)


def test_matern_is_one_at_a_point_and_falls() -> None:
    line = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    row = matern(line[:1], line, 0.5)[0]
    assert row[0] == 1 and (row.diff() < 0).all()
    far = math.sqrt(5) / 0.5
    assert row[-1].item() == pytest.approx((1 + far + far**2 / 3) * math.exp(-far))


def test_nothing_allowed() -> None:
    with pytest.raises(BadInput, match="No point"):
        maximised(hill, BOUNDS, lambda point: False, 4, 2, 0)
    with pytest.raises(BadInput, match="initial"):
        maximised(hill, BOUNDS, anywhere, 1, 2, 0)
