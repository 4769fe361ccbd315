"""Successive halving over methods, budgets and their main parameters.

Every candidate is tried on a few cases; those that others beat in both drop and cost are left, and the rest is tried on
more (Jamieson and Talwalkar 2016, arXiv:1502.07943, with fronts in place of one loss). After the first rung, what lies
beside the survivors in their main parameters joins. Cases of a rung are those of the rung before it and further ones,
so nothing is done twice, and all of it is in the journal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tithe import hosts
from tithe.bench.journal import Journal
from tithe.bench.rows import Refusal, Row
from tithe.bench.runner import Bench, Pool, Progress, local
from tithe.bench.tasks.base import Setting, Task
from tithe.bench.worker import Found, Unit, Worker
from tithe.budget import Keep
from tithe.errors import BadInput, Refused
from tithe.pick.constraints import COSTS, TIMED, Constraints, Cost, cost, drop, fitting
from tithe.pick.fronts import front, layered
from tithe.pick.space import LADDER, Candidate, beside, candidates
from tithe.recipe import Recipe
from tithe.zoo import Loaded

LEAST, ETA, FINAL, CONFIRMED = 4, 3, 6, 5
TIMINGS, STEPS = 3, 16


@dataclass(frozen=True)
class Limits:
    """When to stop: after so many trials (a candidate at a rung), or minutes; None: when the last rung is done.

    Raises:
        BadInput: fewer than one, or no time at all.
    """

    trials: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise BadInput(f"trials={self.trials} is out of range; give at least 1.")
        if self.minutes is not None and not self.minutes > 0:
            raise BadInput(f"minutes={self.minutes} is out of range; give more than 0.")


@dataclass(frozen=True)
class Trial:
    """A candidate at a rung: its row over the cases so far."""

    candidate: Candidate
    rung: int
    row: Row


@dataclass(frozen=True)
class Picked:
    """What was chosen, from what.

    ``winner``: the cheapest whose means satisfy the constraints, on the cases that chose it and on fresh ones
    (``fresh``; None where the task has no others, or the search was stopped before them). ``sure``: the whole interval
    of the drop does. ``runner_up``: the next one of another method. ``front``: what no other trial of the last rung
    beats in both drop and cost, cheapest first. ``stopped``: why the search ended early, empty where it did not.
    """

    winner: Trial
    fresh: Row | None
    sure: bool
    runner_up: Trial | None
    front: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    refused: tuple[Refusal, ...]
    cost: Cost
    constraints: Constraints
    stopped: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """Return the winner as a recipe."""
        return recipe(self.winner.candidate, self.winner.row.model, self._notes())

    @property
    def told(self) -> Row:
        """The winner on the cases that did not choose it, where there are such."""
        return self.fresh or self.winner.row

    def _notes(self) -> dict[str, Any]:
        row = self.told
        told: dict[str, Any] = {
            **self.notes,
            "n": row.n,
            "seed": row.seed,
            "quality": round(row.quality, 4),
            "quality_untouched": round(row.quality_full, 4),
            "drop": round(drop(row), 4),
            "drop_interval": None
            if row.low is None or row.high is None
            else [round(0.0 - row.high, 4), round(0.0 - row.low, 4)],
            "fresh": self.fresh is not None,
            "sure": self.sure,
            "cost": f"{cost(row, self.cost):.3f} of the untouched model's {COSTS[self.cost]}",
            "constraints": str(self.constraints),
            "runner_up": None if self.runner_up is None else str(self.runner_up.candidate),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return told | ({"stopped": self.stopped} if self.stopped else {})


def pick(
    loaded: Loaded,
    task: Task,
    constraints: Constraints,
    *,
    name: str,
    methods: Sequence[str] = (),
    keeps: Sequence[Keep] = LADDER,
    setting: Setting | None = None,
    minimise: str | None = None,
    limits: Limits | None = None,
    journal: Journal | None = None,
    pool: Pool = local,
    progress: Progress | None = None,
    command: str = "",
) -> Picked:
    """Return the cheapest choice whose quality on ``task`` drops by no more than is allowed.

    Args:
        methods: labels to choose from; none for all that serve the model.
        setting: cases of the last rung, their seed, length and the place of the question.
        minimise: ``kv``, ``flops``, ``prefill`` or ``decode``; by default bytes for text, FLOPs for pictures.
        limits: when to stop early; stopped in any way, what was found so far is returned.

    Raises:
        BadInput: an unknown name or a value out of range.
        Refused: nothing satisfies the constraints; the nearest that was found is named.
    """
    setting, limits = setting or Setting(n=48), limits or Limits()
    kind = hosts.find(loaded.model).kind
    if loaded.kind == "vit" and (constraints.max_kv is not None or minimise in ("kv", "decode")):
        raise BadInput(f"{name} classifies and holds no KV cache: limit and minimise flops or prefill.")
    wanted = fitting(minimise, kind)
    task.check(loaded, setting)
    search = _Search(loaded, task, constraints, wanted, name, setting, limits, journal or Journal(None), pool)
    search.progress, search.command = progress, command
    search.run(candidates(list(methods), tuple(keeps), kind))
    return search.picked()


def recipe(candidate: Candidate, model: str, picked: Mapping[str, Any]) -> Recipe:
    """Return a candidate as a recipe."""
    entries = []
    for part in candidate.spec.parts:
        free = {} if candidate.keep is None or "keep" not in part.free() else {"keep": candidate.keep}
        entries.append((part.factory.card.slug, {**free, **part.own}))
    return Recipe(tuple(entries), model, picked)


def rungs(n: int) -> list[int]:
    """Return the numbers of cases at which candidates are compared: ``n`` last, a third of the next before it."""
    found = [n]
    while found[0] >= ETA * LEAST:
        found.insert(0, math.ceil(found[0] / ETA))
    return found


class _Stop(Exception):
    """The search is over before its end."""


@dataclass
class _Search:
    loaded: Loaded
    task: Task
    constraints: Constraints
    cost: Cost
    name: str
    setting: Setting
    limits: Limits
    journal: Journal
    pool: Pool
    progress: Progress | None = None
    command: str = ""
    trials: dict[tuple[Candidate, int], Trial] = field(default_factory=dict)
    refused: dict[Candidate, Refusal] = field(default_factory=dict)
    confirmed: dict[Candidate, Row] = field(default_factory=dict)
    stopped: str = ""

    def run(self, alive: list[Candidate]) -> None:
        """Try ``alive`` rung by rung until a few are left, or until the search is stopped."""
        start = time.monotonic()
        self.until = None if self.limits.minutes is None else start + 60 * self.limits.minutes
        steps = rungs(min(self.setting.n, self.task.size or self.setting.n))
        try:
            for rung, n in enumerate(steps):
                last = rung == len(steps) - 1
                done = self._rung(alive, rung, n, timed=self.cost in TIMED or (last and self.constraints.timed))
                if last:
                    break
                kept = self._survivors(done, max(FINAL, math.ceil(len(alive) / ETA)))
                joined = [each for one in kept for each in beside(one.candidate)] if rung == 0 else []
                alive = list(dict.fromkeys([*(one.candidate for one in kept), *joined]))
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        except _Stop as stop:
            self.stopped = str(stop)

    def picked(self) -> Picked:
        """Return the best of what was tried on the most cases."""
        best = self._best()
        if not best:
            reason = next(iter(self.refused.values())).reason if self.refused else self.stopped or "nothing was tried"
            raise Refused(f"no method could be tried on {self.task.name}: {reason}")
        missed = {one.candidate: self.constraints.violation(one.row, whole=True) for one in best}
        ranked = sorted(best, key=lambda one: (missed[one.candidate], cost(one.row, self.cost), drop(one.row)))
        fit = [one for one in ranked if missed[one.candidate] == 0]
        winner, fresh = self._confirmed(fit)
        if winner is None:
            raise Refused(self._nearest(ranked))
        left = [one for one in fit if one is not winner and not self._failed(one)]
        others = [one for one in left if _slugs(one) != _slugs(winner)]
        points = [(drop(one.row), cost(one.row, self.cost)) for one in best]
        return Picked(
            winner,
            fresh,
            self.constraints.sure(fresh or winner.row),
            next(iter(others or left), None),
            tuple(best[at] for at in front(points)),
            tuple(self.trials.values()),
            tuple(self.refused.values()),
            self.cost,
            self.constraints,
            self.stopped,
            {"task": self.task.name, "question": winner.row.question, "length": winner.row.length},
        )

    def _confirmed(self, fit: Sequence[Trial]) -> tuple[Trial | None, Row | None]:
        """Return the first of the cheapest whose drop is allowed on fresh cases too, and its row on these.

        The best of many on the same cases looks better than it is; fresh cases did not choose it.
        """
        if self.stopped or self.task.size is not None:
            return (fit[0] if fit else None), None
        for one in fit[:CONFIRMED]:
            row = self._fresh(one)
            if row is None or self.stopped:
                return one, None
            self.confirmed[one.candidate] = row
            if drop(row) <= self.constraints.max_drop:
                return one, row
        return None, None

    def _fresh(self, one: Trial) -> Row | None:
        setting = replace(self.setting, seed=self.setting.seed + 1)
        choice = (one.candidate.label, one.candidate.keep)
        bench = Bench(self.loaded, self.name, self.journal, {}, {choice[0]: one.candidate.spec}, STEPS, 0, self)
        try:
            told = self._told(f"fresh cases, {one.candidate}")
            bench.run([(self.task, setting)], [choice], told, f"{self.command} (fresh cases)")
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        except _Stop as stop:
            self.stopped = str(stop)
        rows = bench.result([self.task], [setting], [choice]).rows
        return next((row for row in rows if row.method == choice[0]), None)

    def _failed(self, one: Trial) -> bool:
        row = self.confirmed.get(one.candidate)
        return row is not None and drop(row) > self.constraints.max_drop

    def _nearest(self, ranked: Sequence[Trial]) -> str:
        """Say what came nearest: of those that failed on fresh cases alone the best there, else the first."""
        tested = [one for one in ranked if one.candidate in self.confirmed]
        one = min(tested, key=lambda one: drop(self.confirmed[one.candidate]), default=ranked[0])
        fresh = self.confirmed.get(one.candidate)
        row = fresh or one.row
        held = "" if row.kv_allocated is None else f", {row.kv_allocated:,} bytes"
        held += "" if one.row.prefill_ratio is None else f", {one.row.prefill_ratio:.2f} of the reading time"
        held += "" if one.row.decode_ratio is None else f", {one.row.decode_ratio:.2f} of the time of a token"
        cases = f"{row.n} fresh cases" if fresh is not None else f"{row.n} cases"
        early = (
            f" The search was stopped ({self.stopped}); what it limits may not have been timed." if self.stopped else ""
        )
        return (
            f"{self.constraints}: none of {len(ranked)} candidates satisfies it on {self.task.name}; the nearest is "
            f"{one.candidate}: drop {drop(row):.4f} over {cases}{held}.{early}"
        )

    def _rung(self, alive: Sequence[Candidate], rung: int, n: int, timed: bool) -> list[Trial]:
        labels = {one.label: one.spec for one in alive}
        setting = Setting(n, self.setting.seed, self.setting.question, self.setting.length)
        timings = TIMINGS if timed else 0
        bench = Bench(self.loaded, self.name, self.journal, {}, labels, STEPS, timings, self)
        room = None if self.limits.trials is None else self.limits.trials - len(self.trials)
        tried = list(alive) if room is None else list(alive)[:room]
        choices = [(one.label, one.keep) for one in tried]
        try:
            if choices:
                label = f"{self.command} (rung {rung + 1}, {n} cases)"
                bench.run([(self.task, setting)], choices, self._told(f"rung {rung + 1}, {n} cases"), label)
        finally:
            found = bench.result([self.task], [setting], choices)
            rows = {(row.method, row.keep): row for row in found.rows}
            for one in tried:
                if (one.label, one.keep) in rows:
                    self.trials[one, rung] = Trial(one, rung, rows[one.label, one.keep])
            for refusal in found.refused:
                self.refused[Candidate(refusal.method, refusal.keep)] = refusal
        if len(tried) < len(alive):
            raise _Stop(f"{self.limits.trials} trials are done")
        return [self.trials[one, rung] for one in alive if (one, rung) in self.trials]

    def _survivors(self, done: list[Trial], quota: int) -> list[Trial]:
        able = [one for one in done if not self.constraints.hopeless(one.row)] or done
        points = [(max(0.0, self.constraints.violation(one.row)), cost(one.row, self.cost)) for one in able]
        return [able[at] for at in layered(points)][:quota]

    def _best(self) -> list[Trial]:
        """Each candidate at its last rung, of those that came as far as any; a batch more or less is as far."""
        last: dict[Candidate, Trial] = {}
        for trial in self.trials.values():
            if trial.candidate not in last or trial.rung > last[trial.candidate].rung:
                last[trial.candidate] = trial
        most = max((trial.row.n for trial in last.values()), default=0)
        return [trial for trial in last.values() if trial.row.n + self.task.batch >= most]

    def environment(self, model: Any) -> dict[str, str]:
        """Return the environment of the pool."""
        return self.pool.environment(model)

    def __call__(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
        """Do the units in the pool, until the time is over."""
        for found in self.pool(worker, units):
            yield found
            if self.until is not None and time.monotonic() > self.until:
                raise _Stop(f"{self.limits.minutes:g} minutes are over")

    def _told(self, what: str) -> Progress | None:
        told = self.progress
        return None if told is None else lambda done, total, label: told(done, total, f"{what} · {label}")


def _slugs(trial: Trial) -> tuple[str, ...]:
    return tuple(part.factory.card.slug for part in trial.candidate.spec.parts)
