"""The page of the peers says what was measured, first where we lose; it is what its figures make, and nothing else."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.report import line, page
from benchmarks.peers.rows import Row, agreed, exact, graded, timed

ROOT = Path(__file__).parents[2]
RATIO = Row("decode", "snapkv", 1.0, 2.0, "ms", "lower", "ratio", 0.5, 0.4, 0.6, 9)
MARK = Row("recall", "snapkv", 0.9, 0.5, "", "higher", "difference", 0.4, 0.2, 0.6, 9)


def peer(*rows: Row, fault: str | None = None, lacks: tuple[str, ...] = ()) -> dict[str, Any]:
    plain = [row.plain() for row in rows]
    return {"pins": ["it==1"], "title": "It.", "notes": [], "lacks": lacks, "fault": fault, "on": "here", "rows": plain}


def lost(text: str) -> str:
    return text.split("## Where we lose")[1].split("\n## ")[0]


def test_the_committed_page_is_what_its_figures_make() -> None:
    figures = json.loads((ROOT / "docs" / "peers.json").read_text())
    assert (ROOT / "docs" / "peers.md").read_text() == page(figures)
    assert all(found["rows"] for found in figures.values())


def test_every_figure_that_we_lose_stands_at_the_top() -> None:
    slower = replace(RATIO, value=1.5, low=1.4, high=1.6, case="slower")
    worse = replace(MARK, value=-0.3, low=-0.4, high=-0.1, case="worse")
    text = page({"it": peer(RATIO, slower, MARK, worse)})
    assert text.index("## Where we lose") < text.index("## it")
    assert line(slower) in lost(text) and line(worse) in lost(text)
    assert line(RATIO) not in lost(text) and line(MARK) not in lost(text)
    assert "In none of the figures" in lost(page({"it": peer(RATIO, MARK)}))


def test_what_could_not_be_measured_or_is_missing_counts_as_lost() -> None:
    text = page({"it": peer(RATIO, fault="no registry", lacks=("It has wings.",))})
    assert "no registry" in lost(text) and "It has wings." in lost(text)


@pytest.mark.parametrize("seed", range(40))
def test_planted_losses_are_told_whatever_stands_beside_them(seed: int) -> None:
    draw = random.Random(seed)
    rows = []
    for number in range(12):
        kind = draw.choice(("ratio", "difference"))
        low = draw.uniform(0.2, 2.0) if kind == "ratio" else draw.uniform(-1, 1)
        high = low + draw.uniform(0, 0.5)
        row = RATIO if kind == "ratio" else MARK
        rows.append(replace(row, case=f"case {number} ", low=low, high=high, value=(low + high) / 2))
    bad = {row.case for row in rows if (row.low > 1.02 if row.kind == "ratio" else row.high < 0)}
    told = lost(page({"it": peer(*rows)}))
    assert {row.case for row in rows if row.case in told} == bad


def test_a_tie_is_nobodys() -> None:
    assert replace(RATIO, value=1.0, low=0.9, high=1.1).verdict() == "even"
    assert replace(RATIO, value=1.01, low=1.01, high=1.015).verdict() == "even"
    assert replace(MARK, value=0.0, low=0.0, high=0.0).verdict() == "even"
    assert RATIO.verdict() == MARK.verdict() == "ours"


def test_times_are_compared_round_by_round() -> None:
    row = timed("decode", "x", [1.0, 2.0, 9.0], [2.0, 4.0, 9.0], ([0.5, 1.0, 9.0], [1.0, 1.0, 3.0]))
    assert (row.value, row.low, row.high, row.n) == (0.5, 0.5, 1.0, 3)
    assert (row.ours, row.theirs, row.unit) == (2000.0, 4000.0, "ms")
    assert (row.ours_untouched, row.theirs_untouched) == (2.0, 3.0)


def test_marks_are_compared_case_by_case() -> None:
    row = graded("recall", "x", [1.0] * 20, [0.5] * 20)
    assert (row.value, row.low, row.high, row.verdict()) == (0.5, 0.5, 0.5, "ours")
    noisy = graded("recall", "x", [1.0, 0.0] * 10, [0.0, 1.0] * 10)
    assert noisy.low < 0 < noisy.high and noisy.verdict() == "even"
    assert graded("recall", "x", [0.2, 0.1, 0.3], [0.9, 0.8, 0.7]).verdict() == "theirs"


def test_bytes_and_agreement() -> None:
    assert exact("bytes", "x", 0.5, 0.25, "share").verdict() == "theirs"
    same = agreed("alike", "x", [1.0, 0.98, 0.99], "Pearson")
    assert same.value == 0.99 and same.verdict() == "agreement"
    assert line(same) not in lost(page({"it": peer(same)}))
