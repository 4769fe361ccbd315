"""The search on a model that can do the task, and on planted outcomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import tithe
from tithe.bench.figures import Figures
from tithe.bench.journal import Case, Journal
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.needle import MULTIKEY, NEEDLE
from tithe.bench.worker import Found, Unit, Worker
from tithe.errors import BadInput, Refused
from tithe.pick import Constraints, Limits, Picked, pick
from tithe.pick.search import rungs
from tithe.pick.space import Candidate
from tithe.zoo import Loaded, load_model

METHODS = ("snapkv", "kivi", "random", "recency")


@pytest.fixture(scope="module")
def llm() -> Loaded:
    return load_model("zoo:llm")


class Planted:
    """A pool whose outcomes are known: quality by (method, keep), bytes by keep; counts the cases that it does."""

    def __init__(self, quality: dict[str, float], fresh: dict[str, float] | None = None) -> None:
        self.quality, self.fresh, self.done = quality, fresh or {}, 0

    def environment(self, model: Any) -> dict[str, str]:
        return {"weights": "planted"}

    def __call__(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
        for unit in units:
            for label, keep in unit.choices:
                told = self.fresh if unit.setting.seed else {}
                name = label if keep is None else f"{label} {keep}"
                share = 1.0 if label == "untouched" else told.get(name, self.quality.get(name, 0.0))
                held = 1000.0 if keep is None else 1000.0 * float(keep)
                cost = Figures(1, 1, held, held, 1000.0, 1, 1, "real")
                self.done += len(unit.cases)
                # Every tenth of a hundred cases is right, up to the share that was planted.
                right = tuple(float((case * 37 + 50) % 100 < 100 * share) for case in unit.cases)
                cases = tuple(
                    Case(case, one, (), cost, {}, None, None, 0.0) for case, one in zip(unit.cases, right, strict=True)
                )
                times = None if unit.cases else {"prefill": 0.5 if label == "snapkv" else 2.0, "decode": 1.0}
                yield Found(unit, (label, keep), cases, times)


def go(llm: Loaded, pool: Planted, constraints: Constraints, **options: Any) -> Picked:
    given = {"methods": METHODS, "keeps": (0.5, 0.25), "setting": Setting(100), "name": "planted"} | options
    return pick(llm, NEEDLE, constraints, pool=pool, **given)


def test_rungs_grow_threefold_to_the_last() -> None:
    assert rungs(48) == [6, 16, 48] and rungs(100) == [4, 12, 34, 100] and rungs(5) == [5]


def test_the_cheapest_allowed_wins_and_another_method_is_second(llm: Loaded) -> None:
    pool = Planted({"snapkv 0.25": 0.99, "snapkv 0.5": 1.0, "recency 0.5": 1.0, "kivi": 1.0, "random 0.25": 0.3})
    found = go(llm, pool, Constraints(0.02))
    assert found.winner.candidate == Candidate("snapkv", 0.25) and found.fresh is not None
    assert found.runner_up is not None and found.runner_up.candidate == Candidate("recency", 0.5)
    costs = [one.row.kv_allocated for one in found.front]
    assert costs == sorted(costs, key=lambda one: one or 0) and not found.stopped
    assert go(llm, Planted({"snapkv 0.5": 1.0, "snapkv 0.25": 0.9}), Constraints(0.2)).winner.candidate.keep == 0.25


def test_halving_spends_less_than_trying_all_on_all(llm: Loaded) -> None:
    pool = Planted({"kivi": 1.0, "snapkv 0.5": 1.0})
    go(llm, pool, Constraints(0.02))
    full = Planted({"kivi": 1.0, "snapkv 0.5": 1.0})
    trials = go(llm, full, Constraints(0.02)).trials
    candidates = len({one.candidate for one in trials})
    assert pool.done < 0.5 * 100 * candidates


def test_one_that_shines_by_luck_is_found_out_on_fresh_cases(llm: Loaded) -> None:
    pool = Planted({"snapkv 0.25": 1.0, "snapkv 0.5": 1.0}, fresh={"snapkv 0.25": 0.5})
    found = go(llm, pool, Constraints(0.02))
    assert found.winner.candidate == Candidate("snapkv", 0.5)
    assert found.runner_up is None or found.runner_up.candidate != Candidate("snapkv", 0.25)


def test_nothing_satisfies_it_names_the_nearest(llm: Loaded) -> None:
    pool = Planted({"snapkv 0.5": 0.9, "snapkv 0.25": 0.5})
    with pytest.raises(Refused, match=r"max_drop=0.01: none of \d+ candidates satisfies it on needle; the nearest is "):
        go(llm, pool, Constraints(0.01))
    with pytest.raises(Refused, match=r"the nearest is snapkv keep=0.5: drop 0.1000 over 100 cases, 500 bytes"):
        go(llm, pool, Constraints(0.01))
    with pytest.raises(Refused, match=r"max_kv=100 bytes.* nearest is .* 250 bytes"):
        go(llm, Planted({"snapkv 0.25": 1.0}), Constraints(0.02, max_kv=100))


def test_luck_that_nothing_survives_names_the_best_of_the_fresh_cases(llm: Loaded) -> None:
    pool = Planted({"snapkv 0.25": 1.0, "snapkv 0.5": 1.0}, fresh={"snapkv 0.25": 0.5, "snapkv 0.5": 0.9})
    with pytest.raises(Refused, match=r"the nearest is snapkv keep=0.5: drop 0.1000 over 100 fresh cases"):
        go(llm, pool, Constraints(0.02), methods=["snapkv"])


def test_times_are_measured_where_they_are_limited(llm: Loaded) -> None:
    pool = Planted({"snapkv 0.5": 1.0, "recency 0.25": 1.0})
    assert go(llm, pool, Constraints(0.02)).winner.candidate.label == "recency"
    found = go(llm, pool, Constraints(0.02, max_prefill_ratio=0.6))
    assert found.winner.candidate == Candidate("snapkv", 0.5) and found.winner.row.prefill_ratio == 0.5


@pytest.mark.parametrize("limits", [Limits(trials=9), Limits(minutes=0.5)])
def test_stopped_early_it_gives_the_best_so_far(llm: Loaded, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tithe.pick.search.time.monotonic", itertools.count().__next__)
    pool = Planted({"snapkv 0.5": 1.0, "snapkv 0.25": 1.0, "kivi": 1.0, "recency 0.5": 1.0})
    found = go(llm, pool, Constraints(0.02), limits=limits)
    assert (
        found.stopped in ("9 trials are done", "0.5 minutes are over")
        and found.fresh is None
        and found.winner.row.quality == 1.0
    )
    assert limits.trials is None or len(found.trials) == limits.trials
    assert found.recipe().picked["stopped"] == found.stopped


def test_interrupted_it_gives_the_best_so_far_and_goes_on(llm: Loaded) -> None:
    class Interrupted(Planted):
        def __call__(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
            for at, found in enumerate(super().__call__(worker, units)):
                if at == 30:
                    raise KeyboardInterrupt
                yield found

    quality = {"snapkv 0.5": 1.0, "snapkv 0.25": 1.0, "recency 0.5": 1.0}
    journal = Journal(None)
    found = go(llm, Interrupted(quality), Constraints(0.02), journal=journal)
    assert found.stopped == "interrupted" and found.winner.row.quality == 1.0
    rest, whole = Planted(quality), Planted(quality)
    assert go(llm, rest, Constraints(0.02), journal=journal).winner == go(llm, whole, Constraints(0.02)).winner
    assert rest.done < whole.done


def test_bad_arguments(llm: Loaded) -> None:
    pool = Planted({})
    for options, message in (
        ({"minimise": "kb"}, "Did you mean 'kv'"),
        ({"methods": ["snapvk"]}, "Did you mean 'snapkv'"),
    ):
        with pytest.raises(BadInput, match=message):
            go(llm, pool, Constraints(), **options)
    with pytest.raises(BadInput, match="trials=0"):
        Limits(trials=0)
    with pytest.raises(BadInput, match="minutes=0"):
        Limits(minutes=0)
    assert pool.done == 0


@pytest.mark.slow
def test_on_a_real_task_the_recipe_does_what_was_promised(llm: Loaded, tmp_path: Any) -> None:
    setting = Setting(12, length=256, question="after")
    limits = Constraints(0.2, max_kv=400_000)
    found = pick(llm, MULTIKEY, limits, name="zoo:llm", methods=METHODS, keeps=(0.75, 0.5), setting=setting)
    assert found.winner.candidate.label.startswith("kivi") and found.fresh is not None
    path = found.recipe().write(tmp_path / "tithe.yaml")

    def attach() -> tithe.Run:
        return tithe.on(llm.model, path)

    fresh = Setting(12, seed=1, length=256, question="after")
    assert MULTIKEY.evaluate(llm, attach, fresh).quality == pytest.approx(found.fresh.quality)
