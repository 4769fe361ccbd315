"""ARISE: against a naive reference, and the things it is said to see that a slope does not."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from tithe.bench.arise import Measured, Point, Stability, arise, measure, sample_score, scaling_metric, variation
from tithe.errors import BadInput


def drawn(seed: int, samples: int = 12, budgets: int = 4) -> list[list[Point]]:
    rng = np.random.default_rng(seed)
    tokens = np.cumsum(rng.uniform(50, 400, (samples, budgets)), 1)
    accuracy = rng.integers(0, 5, (samples, budgets)) / 4
    return [list(zip(row.tolist(), right.tolist(), strict=True)) for row, right in zip(tokens, accuracy, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_naive_reference(seed: int) -> None:
    samples = drawn(seed)
    total, slopes = 0.0, []
    for points in samples:
        for j in range(1, len(points)):
            delta = points[j][1] - points[j - 1][1]
            total += delta * (points[j - 1][0] / points[j][0]) ** np.sign(delta)
    assert arise(samples) == pytest.approx(total / len(samples), rel=1e-12)
    for a, b in itertools.combinations(range(4), 2):
        means = [
            (statistics.mean(points[j][0] for points in samples), statistics.mean(points[j][1] for points in samples))
            for j in (a, b)
        ]
        slopes.append((means[1][1] - means[0][1]) / (means[1][0] - means[0][0]))
    assert scaling_metric(samples) == pytest.approx(statistics.mean(slopes), rel=1e-9)


def test_gains_losses_and_their_tokens() -> None:
    assert sample_score([(100, 0), (200, 1)]) == 0.5 and sample_score([(100, 0), (400, 1)]) == 0.25
    assert sample_score([(100, 1), (200, 0)]) == -2 and sample_score([(100, 1), (400, 0)]) == -4
    assert sample_score([(100, 1), (900, 1)]) == sample_score([(100, 0.5)]) == 0
    assert sample_score([(100, 0), (200, 1), (400, 0)]) == 0.5 - 2
    # A sample that thinks less and is right all the same gains more than one.
    assert sample_score([(200, 0), (100, 1)]) == 2


def test_a_loss_behind_a_gain_is_seen_by_arise_alone() -> None:
    honest = [[(100, 0), (300, 1)], [(100, 1), (300, 1)], [(100, 0), (300, 0)], [(100, 0), (300, 0)]]
    hidden = [[(100, 0), (300, 1)], [(100, 0), (300, 1)], [(100, 1), (300, 0)], [(100, 0), (300, 0)]]
    assert scaling_metric(honest) == pytest.approx(scaling_metric(hidden)) == pytest.approx(0.25 / 200)
    assert arise(honest) > 0 > arise(hidden)


@pytest.mark.parametrize(
    ("run", "runs"),
    [
        (lambda place: (100.0, 1.0), 3),
        (lambda place: (100.0, float(place % 2)), 10),
        (lambda place: (100.0, float(place != 0)), 5),
        (lambda place: (100.0, 0.0), 3),
    ],
)
def test_runs_until_stable(run: object, runs: int) -> None:
    places = itertools.count()
    found = measure(lambda: run(next(places)))  # type: ignore[operator]
    assert found.runs == next(places) == runs
    points = [run(place) for place in range(runs)]  # type: ignore[operator]
    assert found.point == pytest.approx((100, statistics.mean(right for _, right in points)))
    assert found.variation == variation(points) and (found.variation <= 0.5 or runs == 10)
    assert all(variation(points[:count]) > 0.5 for count in range(3, runs))


def test_variation_adds_both() -> None:
    runs = [(100.0, 1.0), (300.0, 0.5), (200.0, 0.0)]
    naive = float(np.std([100, 300, 200]) / 200 + np.std([1, 0.5, 0]) / 0.5)
    assert variation(runs) == pytest.approx(naive)
    assert measure(lambda: (10.0, 1.0), Stability(least=1)) == Measured(10, 1, 1, 0)


def test_refusals() -> None:
    for samples in ([], [[(1, 1)]], [[(1, 1), (2, 1)], [(1, 1)]]):
        with pytest.raises(BadInput, match="same budgets"):
            arise(samples)
    with pytest.raises(BadInput, match="no slope"):
        scaling_metric([[(5, 0), (5, 1)]])
    with pytest.raises(BadInput, match="positive"):
        sample_score([(0, 1), (5, 1)])
    with pytest.raises(BadInput, match="least <= most"):
        Stability(least=5, most=4)
