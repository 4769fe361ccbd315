"""Who loses to random: by hand."""

from __future__ import annotations

from typing import Any

from tithe.bench import Row, losers
from tithe.bench.chance import Loser, is_random


def row(method: str, quality: float, keep: float | None = 0.5, **changed: Any) -> Row:
    """A row of a task that the untouched model solves to 0.9."""
    plain: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    told = {"model": "zoo:scenes", "task": "ocr", "method": method, "keep": keep, "quality": quality}
    return Row(**{**plain, **told, "quality_full": 0.9, "n": 8, "seed": 0, "question": "inside", **changed})


def test_equal_or_worse_is_lost() -> None:
    rows = [row("fastervlm", 0.6), row("visionzip", 0.4), row("fastv", 0.5), row("random-patches", 0.5)]
    assert losers(rows) == [
        Loser("zoo:scenes", "ocr", "inside", "visionzip", 0.5, 0.4, 0.5),
        Loser("zoo:scenes", "ocr", "inside", "fastv", 0.5, 0.5, 0.5),
    ]
    assert losers([vars(one) for one in rows]) == losers(rows)


def test_each_task_budget_and_place_of_the_question_has_its_own_chance() -> None:
    mine = [
        row("fastv", 0.5),
        row("fastv", 0.5, 0.1),
        row("fastv", 0.5, task="video"),
        row("fastv", 0.5, question="after"),
    ]
    theirs = [row("random-patches", 0.6), row("random-patches", 0.2, 0.1), row("random", 0.4, question="after")]
    assert [(one.task, one.keep, one.question, one.chance) for one in losers(mine + theirs)] == [
        ("ocr", 0.5, "inside", 0.6)
    ]
    assert losers(mine) == [], "nothing beside it, nothing lost"


def test_the_best_of_several_random_baselines_counts() -> None:
    assert losers([row("fastv", 0.5), row("random-patches", 0.4), row("random:seed=1", 0.7)])[0].chance == 0.7


def test_what_cannot_lose() -> None:
    spared = [row("untouched", 0.9, None), row("uniform-patches", 0.1), row("downsample", 0.1), row("ats", 0.1, None)]
    assert losers([*spared, row("random-patches", 0.5)]) == []
    assert losers([row("fastv", 0.9), row("random-patches", 0.9)]) == [], "a budget too generous to tell"
    assert len(losers([row("fastv", 0.8), row("random-patches", 0.95)])) == 1
    assert len(losers([row("uniform-patches+kivi", 0.1), row("random-patches", 0.5)])) == 1


def test_which_labels_are_chance() -> None:
    assert all(map(is_random, ("random", "random-patches", "random-blocks:seed=2")))
    assert not any(map(is_random, ("randomised", "fastv", "uniform")))
