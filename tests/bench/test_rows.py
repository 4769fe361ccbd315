"""Rows from cases: only what both have counts, and every column is what it says."""

from __future__ import annotations

import pytest

from tithe.bench import rows
from tithe.bench.figures import NOTHING, Figures
from tithe.bench.journal import Case
from tithe.bench.rows import Place
from tithe.bench.tasks.base import Answer

PLACE = Place("m", "t", "snapkv", 0.5, "inside", 128, 0)
COST = Figures(10, 20, 100.0, 120.0, 200.0, 1000.4, 2000.0, "real")


def case(number: int, quality: float, **told: object) -> Case:
    given = {"answers": (), "figures": COST, "extras": {}, "agreement": None, "kl": None, "seconds": 0.0} | told
    return Case(number, quality, **given)  # type: ignore[arg-type]


def test_only_cases_that_both_have_count() -> None:
    mine = {at: case(at, 0.5) for at in range(4)}
    plain = {at: case(at, 1.0) for at in (1, 2, 9)}
    row = rows.row(PLACE, [(mine, plain)], None)
    assert (row.n, row.quality, row.quality_full) == (2, 0.5, 1.0)
    assert (row.kept_tokens, row.kv_bytes, row.flops) == (10, 100, 1000) and row.prefill_ratio is None


def test_seeds_are_one_row_and_their_spread() -> None:
    seeds = [({0: case(0, 0.0), 1: case(1, 0.0)}, {0: case(0, 1.0), 1: case(1, 1.0)}) for _ in range(2)]
    seeds[1] = ({0: case(0, 1.0), 1: case(1, 1.0)}, seeds[1][1])
    row = rows.row(PLACE, seeds, {"prefill": 0.5, "decode": None})
    assert (row.n, row.repeats, row.quality, row.prefill_ratio) == (4, 2, 0.5, 0.5)
    assert row.spread == pytest.approx(0.5**0.5)


def test_what_is_known_is_averaged_and_extras_are_columns() -> None:
    mine = {
        0: case(0, 1.0, agreement=1.0, kl=0.5, extras={"repeated": 0.2}),
        1: case(1, 1.0, agreement=None, kl=None, extras={"repeated": 0.4, "kept_tokens": 3.0}),
    }
    row = rows.row(PLACE, [(mine, {at: case(at, 1.0) for at in mine})], None)
    assert (row.agreement, row.kl) == (1.0, 0.5)
    told = row.to_dict()
    # A further figure never hides a column that is there already.
    assert told["repeated"] == pytest.approx(0.3) and told["kept_tokens"] == 10


def test_depths_fall_into_fifths() -> None:
    answers = tuple(Answer("q", "a", "a", score, depth) for depth, score in ((0.0, 1), (0.1, 0), (0.99, 1), (1.0, 1)))
    told = rows.by_depth([case(0, 1.0, answers=(*answers, Answer("q", "a", "b", 0.0)))])
    assert told == ((0.1, 0.5, 2), (0.9, 1.0, 2))


def test_qualities_in_nats_are_not_held_between_0_and_1() -> None:
    mine = {at: case(at, -3.0 - at / 10, figures=NOTHING) for at in range(6)}
    row = rows.row(PLACE, [(mine, {at: case(at, -3.0, figures=NOTHING) for at in mine})], None)
    assert row.quality_low is not None and row.quality_high is not None and row.low is not None
    assert row.quality_low < row.quality < row.quality_high < 0 and row.low < 0 and row.kv_bytes is None


def test_the_untouched_model_differs_from_itself_by_nothing() -> None:
    plain = {at: case(at, float(at % 2)) for at in range(4)}
    row = rows.row(Place("m", "t", "untouched", None, None, None, 0), [(plain, plain)], None)
    assert (row.low, row.high, row.verdict, row.needed) == (0.0, 0.0, "equal", None)
