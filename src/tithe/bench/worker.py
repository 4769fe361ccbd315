"""One case after the other under every method: what a single process does of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from tithe.bench import specs
from tithe.bench.answers import agreement, divergence
from tithe.bench.ask import Attach, untouched
from tithe.bench.journal import Case
from tithe.bench.tasks.base import Marked, Setting, Task
from tithe.bench.timing import Ratios, alone, ratios
from tithe.budget import Keep
from tithe.errors import TitheError
from tithe.flow import Run, on
from tithe.types import Method
from tithe.zoo import Loaded

Choice = tuple[str, "Keep | None"]
"""A method as text and its budget."""


@dataclass(frozen=True)
class Unit:
    """Work for one process at a time: some cases of a task under these choices, or (no cases) their timings."""

    task: Task
    setting: Setting
    cases: tuple[int, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Found:
    """What came of one choice of a unit: its cases, its timings, or why there are none.

    ``failed``: it broke, rather than being refused on purpose.
    """

    unit: Unit
    choice: Choice
    cases: tuple[Case, ...] = ()
    times: dict[str, float | None] | None = None
    reason: str = ""
    failed: bool = False


class Worker:
    """Does units with one loaded model; ``params`` go to each method that has them.

    ``timings`` pairs behind each ratio, of ``steps`` written tokens each.
    """

    def __init__(self, loaded: Loaded, params: dict[str, Any], timings: int, steps: int) -> None:
        self.loaded, self.params, self.timings, self.steps = loaded, params, timings, steps
        self._refused: set[tuple[str, int, Choice]] = set()

    def do(self, unit: Unit) -> Iterator[Found]:
        """Yield what comes of each choice, as soon as it is there; the untouched model comes first."""
        plain: list[Marked] | None = None
        for choice in sorted(unit.choices, key=lambda one: one[0] != specs.UNTOUCHED):
            place = (unit.task.name, unit.setting.length, choice)
            if place in self._refused:
                continue
            try:
                if not unit.cases:
                    yield Found(unit, choice, times=self._times(unit, choice))
                    continue
                if plain is None:
                    plain = unit.task.mark(self.loaded, untouched, unit.setting, unit.cases)
                yield Found(unit, choice, self._cases(unit, choice, plain))
            except TitheError as error:
                self._refused.add(place)
                yield Found(unit, choice, reason=str(error))
            except Exception as error:
                self._refused.add(place)
                yield Found(unit, choice, reason=f"{type(error).__name__}: {error}", failed=True)

    def _cases(self, unit: Unit, choice: Choice, plain: list[Marked]) -> tuple[Case, ...]:
        start = time.perf_counter()
        marked = unit.task.mark(self.loaded, self._attach(choice), unit.setting, unit.cases)
        seconds = (time.perf_counter() - start) / len(unit.cases)
        if choice[0] == specs.UNTOUCHED:
            # The answers are those of the model as it is; the counters of a run that changes nothing give the figures.
            marked = [counted(one, other) for one, other in zip(plain, marked, strict=True)]
        return tuple(compared(one, other, seconds) for one, other in zip(marked, plain, strict=True))

    def _times(self, unit: Unit, choice: Choice) -> dict[str, float | None]:
        inputs = unit.task.sample(self.loaded, unit.setting)
        how = alone if choice[0] == specs.UNTOUCHED else ratios
        steps = 0 if unit.task.kind == "vit" else self.steps
        found: Ratios = how(self.loaded.model, inputs, self._attach(choice), steps, self.timings)
        return {"prefill": found.prefill, "decode": found.decode, **_seconds(found)}

    def _attach(self, choice: Choice) -> Attach:
        label, keep = choice
        methods: tuple[Method, ...] = ()
        if label != specs.UNTOUCHED:
            methods = specs.parse(label).methods(keep, self.params)

        def attach() -> AbstractContextManager[Run]:
            model = self.loaded.model
            return on(model, methods) if methods else Run(model, (), "counts", False)

        return attach


def counted(plain: Marked, under: Marked) -> Marked:
    """Return the untouched model's case with the tokens and FLOPs that a run counted, and its own bytes."""
    held = {name: getattr(plain.figures, name) for name in ("kv_bytes", "kv_allocated", "kv_bytes_full")}
    return replace(plain, figures=replace(under.figures, **held))


def compared(mine: Marked, plain: Marked, seconds: float) -> Case:
    """Return a case beside the untouched model's."""
    agrees, nats = None, None
    if mine.answers:
        agrees = agreement([one.given for one in mine.answers], [one.given for one in plain.answers])
    pairs = zip(plain.logs, mine.logs, mine.ids, plain.ids, strict=True)
    heard = [pair for pair in pairs if all(len(part) for part in pair)]
    if heard:
        nats = fmean(divergence(*pair) for pair in heard)
    return Case(mine.case, mine.quality, mine.answers, mine.figures, dict(mine.extras), agrees, nats, seconds)


def _seconds(found: Ratios) -> dict[str, float | None]:
    spent = found.seconds
    return {
        "encode_s": spent.encode,
        "select_s": spent.select,
        "prefill_s": spent.text,
        "decode_s": spent.decode,
    }
