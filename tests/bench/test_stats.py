"""Intervals hold their promise, say nothing of too few cases, and are never certain without a reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.bench import stats
from tithe.bench.stats import Interval

# Two-sided 95% quantiles of Student's t, from any table.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 15: 2.131, 30: 2.042, 100: 1.984}


@pytest.mark.parametrize(("degrees", "expected"), TABLE.items())
def test_students_quantile(degrees: int, expected: float) -> None:
    assert stats.student(0.95, degrees) == pytest.approx(expected, rel=0.011)


def test_against_a_plain_bootstrap() -> None:
    draw = np.random.default_rng(3)
    values = draw.exponential(size=200)
    found = stats.interval(values.tolist())
    plain = [np.mean(draw.choice(values, len(values))) for _ in range(4000)]
    low, high = np.quantile(plain, (0.025, 0.975))
    assert found.mean == pytest.approx(values.mean())
    # 200 cases: the outward shift is below 1% of the width, the resampling noise a few percent.
    assert found.low == pytest.approx(low, abs=0.08 * (high - low)) and found.high == pytest.approx(
        high, abs=0.08 * (high - low)
    )


@pytest.mark.parametrize("n", [8, 24])
def test_the_interval_covers_the_truth(n: int) -> None:
    draw, truth, hits = np.random.default_rng(n), 0.3, 0
    for trial in range(400):
        found = stats.interval((draw.random(n) < truth).astype(float).tolist(), 1.0, seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    assert hits / 400 >= 0.91


def test_the_plain_percentiles_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "student", lambda *_: 1.96 * math.sqrt(7 / 8))
    draw, hits = np.random.default_rng(8), 0
    for trial in range(400):
        found = stats.interval(draw.normal(size=8).tolist(), seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0 <= found.high
    assert hits / 400 < 0.92


def test_equal_cases_are_not_certain() -> None:
    found = stats.interval([0.0] * 8, 1.0)
    # 8 cases without a change leave room for one in 1 - 0.05 ** (1 / 8).
    assert found.high == pytest.approx(1 - 0.05**0.125) and found.low == -found.high
    assert stats.verdict(found) == "too few" and found.needed == 149
    assert stats.verdict(stats.interval([0.0] * 149, 1.0)) == "equal"
    assert stats.interval([0.0] * 8) == Interval(0.0, 0.0, 0.0, 8)


def test_verdicts() -> None:
    assert stats.verdict(Interval(-0.3, -0.4, -0.1)) == "worse"
    assert stats.verdict(Interval(0.3, 0.1, 0.4)) == "better"
    assert stats.verdict(Interval(-0.01, -0.019, -0.001)) == "equal"
    assert stats.verdict(Interval(0.0, -0.1, 0.2)) == stats.verdict(Interval(0.0, None, None)) == "too few"


def test_one_case_says_nothing() -> None:
    assert stats.interval([0.5]) == Interval(0.5, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        stats.interval([])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_means_lie_in_their_intervals_and_within_the_span(values: list[float]) -> None:
    found = stats.interval(values, 1.0)
    assert found.low is not None and found.high is not None and found.needed is not None
    assert -1 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1
    assert found.needed >= len(values)
    assert stats.interval(values, 1.0) == found
