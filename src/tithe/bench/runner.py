"""Methods x budgets x tasks on one model, each beside the untouched model and the baselines, case by case.

Cases are the outer loop: after every case all methods have seen the same work, so a run that is stopped can be read,
and one that was killed goes on from its journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tithe import hosts
from tithe.bench import registry, rows, specs
from tithe.bench.ask import Where
from tithe.bench.environment import environment
from tithe.bench.journal import Case, Journal, Work
from tithe.bench.rows import Place, Refusal, Result, Row
from tithe.bench.specs import Spec
from tithe.bench.tasks.base import Setting, Task
from tithe.bench.timing import one_thread_if_small
from tithe.bench.worker import Choice, Found, Unit, Worker
from tithe.budget import Keep, check_keep
from tithe.errors import BadInput, Refused, unknown
from tithe.zoo import Loaded, load_model

WHERES: tuple[Where, ...] = ("inside", "after")
PLAIN: Choice = (specs.UNTOUCHED, None)

Do = Callable[[Unit], Iterable[Found]]


class Progress(Protocol):
    """Told before each piece of work: how many are done, of how many, and what comes now."""

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show it."""
        ...


class Pool(Protocol):
    """Where units are done; `local` does them here, one after the other."""

    def environment(self, model: Any) -> dict[str, str]:
        """Return the environment that they are done in."""
        ...

    def __call__(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
        """Yield what comes of ``units``, in any order; each choice of each of them once."""
        ...


class Local:
    """Does the units in this process; a small model runs on one thread."""

    def environment(self, model: Any) -> dict[str, str]:
        """Return the environment of ``model``."""
        return environment(model)

    def __call__(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
        """Yield what comes of the units, one after the other."""
        with one_thread_if_small(worker.loaded.model):
            for unit in units:
                yield from worker.do(unit)


local = Local()


def run(
    model: str | Loaded,
    tasks: Sequence[str | Task] = (),
    methods: Sequence[str] = (),
    keeps: Sequence[Keep] = (0.5, 0.25, 0.1),
    *,
    n: int = 16,
    seed: int = 0,
    question: Where = "inside",
    length: int | Sequence[int] = 512,
    repeat: int = 1,
    timings: int = 3,
    steps: int = 16,
    baselines: bool = True,
    params: dict[str, Any] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    journal: Journal | str | Path | None = None,
    pool: Pool = local,
    command: str = "",
) -> Result:
    """Run ``methods`` at ``keeps`` on ``tasks`` of ``n`` cases.

    Args:
        model: what ``tithe.zoo.load_model`` takes, or a model already loaded.
        tasks: names, or tasks of one's own; none for every task that fits the model, but for lengthy ones.
        methods: slugs, ``a+b`` for several acting together; none for every method that fits.
        keeps: fractions (floats) or counts (ints).
        n: cases of each task and seed. A journal that holds some of them is only added to.
        question: where recall and picture tasks put their question: ``inside`` the prompt, or ``after`` compression.
        length: tokens of the context, for text tasks; several give a row each.
        repeat: seeds, counted up from ``seed``; a row is over all of them.
        timings: pairs of timings behind each ratio, whose median is taken; at least 3, or 0 for no timings.
        steps: tokens written in each timing.
        baselines: add those of the methods' families at the same budgets.
        params: further parameters, each for the methods that have it.
        journal: where every case is committed as soon as it is there, or a path; None: in memory.
        pool: where the work is done.
        command: what to call this run in the journal.

    Raises:
        BadInput: an unknown name, a value out of range, or a task for another kind of model.
        Refused: no method at all could run; the reason of the first.
    """
    params = params or {}
    lengths = (length,) if isinstance(length, int) else tuple(length)
    named = [task for task in tasks if isinstance(task, str)]
    chosen = check(named, methods, keeps, question, n, seed, lengths, repeat, timings, params)
    label = name or (model if isinstance(model, str) else type(model.model).__name__)
    loaded = load_model(model) if isinstance(model, str) else model
    todo = registry.check(list(tasks) or list(registry.default(loaded.kind, label)), loaded.kind, label)
    kind = hosts.find(loaded.model).kind
    chosen = chosen or specs.collect(specs.serving(kind), params)
    everything = {spec.label: spec for spec in (*chosen, *(specs.baselines(chosen, kind) if baselines else ()))}
    choices = [(spec.label, keep) for spec in everything.values() for keep in spec.budgets(keeps)]
    settings = [Setting(n, seed + at, question, each) for each in lengths for at in range(repeat)]
    for task in todo:
        for setting in _distinct(task, settings):
            task.check(loaded, setting)
    held = journal if isinstance(journal, Journal) else Journal(journal)
    try:
        bench = Bench(loaded, label, held, params, everything, steps, timings, pool)
        asked = [(task, setting) for task in todo for setting in _distinct(task, settings)]
        bench.run(asked, choices, progress, command)
        result = bench.result(todo, settings, choices)
    finally:
        if held is not journal:
            held.close()
    wanted = {spec.label for spec in chosen}
    if result.refused and not any(row.method in wanted for row in result.rows):
        raise Refused(next(one.reason for one in result.refused if one.method in wanted))
    return result


def check(
    tasks: Sequence[str],
    methods: Sequence[str],
    keeps: Sequence[Keep],
    question: str,
    n: int,
    seed: int,
    lengths: Sequence[int],
    repeat: int,
    timings: int,
    params: dict[str, Any],
) -> list[Spec]:
    """Return the specs of ``methods``, or raise what is wrong with any argument, before a model is loaded."""
    for keep in keeps:
        check_keep(keep)
    given = [("n", n, 1), ("repeat", repeat, 1), ("seed", seed, 0), *(("length", length, 1) for length in lengths)]
    for name, value, least in (*given, ("timings", timings, 3 if timings else 0)):
        if value < least:
            none = " or 0 for none" if name == "timings" else ""
            raise BadInput(f"{name}={value} is out of range; give at least {least}{none}.")
    if not lengths:
        raise BadInput("length is empty: give a number of tokens such as 512.")
    if question not in WHERES:
        raise unknown("question", question, WHERES)
    for task in tasks:
        registry.get(task)
    chosen = specs.collect(methods, params) if methods else []
    wrong = []
    for spec in chosen:
        for budget in spec.budgets(keeps):
            try:
                spec.methods(budget, params)
            except BadInput as error:
                wrong.append(error)
    if chosen and len(wrong) == sum(len(spec.budgets(keeps)) for spec in chosen):
        raise wrong[0] if wrong else BadInput("keep is empty: give a budget such as 0.25.")
    return chosen


@dataclass
class Bench:
    """What one model is asked under which methods, and the journal of it."""

    loaded: Loaded
    label: str
    journal: Journal
    params: dict[str, Any]
    specs: dict[str, Spec]
    steps: int
    timings: int
    pool: Pool = local

    def __post_init__(self) -> None:
        self.environment = tuple(sorted(self.pool.environment(self.loaded.model).items()))
        self.broken: dict[tuple[str, int, Choice], str] = {}

    def run(
        self,
        asked: Sequence[tuple[Task, Setting]],
        choices: Sequence[Choice],
        progress: Progress | None,
        command: str,
    ) -> None:
        """Do what the journal lacks."""
        every = [PLAIN, *choices]
        works = {self.work(*one, choice): sum(map(len, one[0].batches(one[1].n))) for one in asked for choice in every}
        self.journal.begin(command, works)
        units = [unit for one in asked for unit in self.units(*one, every)]
        total = sum(len(unit.choices) for unit in units)
        worker = Worker(self.loaded, self.params, self.timings, self.steps)
        done = 0
        if units and progress is not None:
            progress(done, total, units[0].task.name)
        for found in self.pool(worker, units):
            self.note(found)
            done += 1
            if progress is not None:
                method, keep = found.choice
                what = f"{found.unit.task.name} · {method}" + (f" · {keep}" if keep is not None else "")
                progress(min(done, total), total, what)
        if progress is not None:
            progress(total, total, "done")

    def units(self, task: Task, setting: Setting, choices: Sequence[Choice]) -> Iterator[Unit]:
        """Yield what is still to be done: batches of cases, then the timings of the first seed."""
        works = {choice: self.work(task, setting, choice) for choice in choices}
        open_ = [choice for choice in choices if self.journal.refusal(works[choice]) is None]
        done = {choice: self.journal.done(works[choice]) for choice in open_}
        for cases in task.batches(setting.n):
            lacking = tuple(choice for choice in open_ if not done[choice] >= set(cases))
            if lacking:
                yield Unit(task, setting, tuple(cases), lacking)
        if not self.timings:
            return
        for choice in open_:
            if self.journal.times(works[choice], self.how) is None:
                yield Unit(task, setting, (), (choice,))

    def note(self, found: Found) -> None:
        """Commit what was found."""
        work = self.work(found.unit.task, found.unit.setting, found.choice)
        for case in found.cases:
            self.journal.add(work, case)
        if found.times is not None:
            self.journal.add_times(work, self.how, found.times)
        if found.failed:
            self.broken[found.unit.task.name, found.unit.setting.length, found.choice] = found.reason
        elif found.reason:
            self.journal.refuse(work, found.reason)

    def result(self, tasks: Sequence[Task], settings: Sequence[Setting], choices: Sequence[Choice]) -> Result:
        """Return the rows of what the journal holds, and what was refused."""
        found: list[Row] = []
        refused: list[Refusal] = []
        for task in tasks:
            for some in _by_length(_distinct(task, settings)):
                plain = [self.journal.cases(self.work(task, setting, PLAIN)) for setting in some]
                for choice in (PLAIN, *choices):
                    reason = self.reason(task, some, choice)
                    if reason is None:
                        found += self.row(task, some, choice, plain)
                    else:
                        refused.append(Refusal(self.label, task.name, *choice, *reason))
        return Result(tuple(found), tuple(dict.fromkeys(refused)))

    def row(
        self, task: Task, settings: Sequence[Setting], choice: Choice, plain: Sequence[dict[int, Case]]
    ) -> Iterator[Row]:
        """Yield the row of a choice over the seeds of ``settings``, none where no case is there yet.

        ``plain``: the untouched model's cases of each of ``settings``.
        """
        first = self.work(task, settings[0], choice)
        seeds = []
        for setting, theirs in zip(settings, plain, strict=True):
            mine = self.journal.cases(self.work(task, setting, choice))
            seeds.append(({at: case for at, case in mine.items() if at < setting.n}, theirs))
        if any(set(mine) & set(theirs) for mine, theirs in seeds):
            place = Place(self.label, task.name, *choice, first.question, first.length, first.seed)
            yield rows.row(place, seeds, self.journal.times(first, self.how))

    def reason(self, task: Task, settings: Sequence[Setting], choice: Choice) -> tuple[str, bool] | None:
        """Return why there is no row, and whether something broke."""
        for setting in settings:
            broke = self.broken.get((task.name, setting.length, choice))
            if broke is not None:
                return broke, True
            told = self.journal.refusal(self.work(task, setting, choice))
            if told is not None:
                return told, False
        return None

    def work(self, task: Task, setting: Setting, choice: Choice) -> Work:
        """Return what a case of a choice depends on."""
        method, keep = choice
        used = self.specs[method].free if method in self.specs else set()
        params = {name: value for name, value in sorted(self.params.items()) if name in used}
        return Work(
            self.label,
            task.name,
            task.digest,
            setting.question if task.positions else None,
            setting.length if task.sized else None,
            setting.seed,
            method,
            keep,
            json.dumps(params, default=repr) if params else "",
            self.environment,
        )

    @property
    def how(self) -> str:
        """How timings are taken."""
        return f"{self.timings} x {self.steps}"


def _distinct(task: Task, settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that a task can tell apart.

    A task of so many cases has no others for a further seed: there the seeds together are one draw of more cases.
    """
    if task.size is not None:
        first = settings[0]
        return [replace(first, n=first.n * len({setting.seed for setting in settings}))]
    kept = {(setting.seed, setting.length if task.sized else None): setting for setting in reversed(settings)}
    return list(reversed(kept.values()))


def _by_length(settings: Sequence[Setting]) -> list[list[Setting]]:
    found: dict[int, list[Setting]] = {}
    for setting in settings:
        found.setdefault(setting.length, []).append(setting)
    return list(found.values())
