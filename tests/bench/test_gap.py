"""Token choice has consequences on the zoo: good methods hold where random ones fall, and a late question is harder."""

from __future__ import annotations

from functools import lru_cache, partial

import tithe
from tithe.bench.ask import Where
from tithe.bench.tasks.base import Setting, Task
from tithe.bench.tasks.needle import MULTIKEY
from tithe.bench.tasks.vision import DIGITS, VQA
from tithe.zoo import Loaded, load_model


@lru_cache(maxsize=3)
def loaded(name: str) -> Loaded:
    return load_model(name)


def quality(task: Task, method: str, keep: float, n: int, where: Where = "inside") -> float:
    mine = loaded(f"zoo:{task.kind}")
    attach = partial(tithe.on, mine.model, method, keep=keep)
    return task.evaluate(mine, attach, Setting(n, 0, where)).quality


def test_a_window_that_holds_the_question_finds_the_facts() -> None:
    good, blind = (quality(MULTIKEY, method, 0.1, 3) for method in ("snapkv", "random"))
    assert good >= 0.9 and blind <= 0.4


def test_a_window_without_the_question_does_not() -> None:
    inside, after = (quality(MULTIKEY, "snapkv", 0.25, 3, where) for where in ("inside", "after"))
    assert inside - after >= 0.25


def test_attention_in_the_tower_finds_the_digits() -> None:
    deep, last, blind = (quality(VQA, method, 0.1, 40) for method in ("hiprune", "fastervlm", "random-patches"))
    assert deep - blind >= 0.3 and last - blind >= 0.15


def test_merging_keeps_what_dropping_at_random_loses() -> None:
    good, blind = (quality(DIGITS, method, 0.25, 24) for method in ("tome", "random-blocks"))
    assert good - blind >= 0.3
