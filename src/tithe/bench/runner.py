"""Methods x budgets x tasks on one model, each beside the untouched model and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from tithe import hosts
from tithe.bench import registry, specs
from tithe.bench.ask import Attach, Where, untouched
from tithe.bench.figures import Figures
from tithe.bench.specs import Spec
from tithe.bench.tasks.base import Outcome, Setting, Task
from tithe.bench.timing import Ratios, alone, one_thread_if_small, ratios
from tithe.budget import Keep, check_keep
from tithe.errors import BadInput, Refused, TitheError, unknown
from tithe.flow import Run, on
from tithe.zoo import Loaded, load_model

WHERES: tuple[Where, ...] = ("inside", "after")


@dataclass(frozen=True)
class Row:
    """One method at one budget on one task; ``_full`` figures are the untouched model's.

    ``kept_tokens`` of ``total_tokens`` presented to the last selecting step; bytes when the answer ends; FLOPs of one
    reading of the context and of what is asked about it; ``prefill_ratio`` and ``decode_ratio`` are times over those of
    the untouched model; ``encode_s`` seconds of the vision tower, ``select_s`` of choosing among its tokens,
    ``prefill_s`` of the language model's reading, ``decode_s`` of one token written, medians of the timings.
    None where a task has no such thing. ``quality``: see the task.
    """

    model: str
    task: str
    method: str
    keep: Keep | None
    quality: float
    quality_full: float
    kept_tokens: float | None
    total_tokens: float | None
    kv_bytes: int | None
    kv_allocated: int | None
    kv_bytes_full: int | None
    flops: int | None
    flops_full: int | None
    prefill_ratio: float
    decode_ratio: float | None
    saving: str
    n: int
    seed: int
    question: str | None
    encode_s: float | None = None
    select_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True)
class Refusal:
    """What did not run, and why; ``failed``: it broke, rather than being refused on purpose."""

    model: str
    task: str
    method: str
    keep: Keep | None
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Result:
    """Rows, and what gave none."""

    rows: tuple[Row, ...]
    refused: tuple[Refusal, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


class Progress(Protocol):
    """Told before each piece of work: how many are done, of how many, and what comes now."""

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show it."""
        ...


def run(
    model: str | Loaded,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    keeps: Sequence[Keep] = (0.5, 0.25, 0.1),
    *,
    n: int = 16,
    seed: int = 0,
    question: Where = "inside",
    length: int = 512,
    repeat: int = 3,
    steps: int = 16,
    baselines: bool = True,
    params: dict[str, Any] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run ``methods`` at ``keeps`` on ``tasks`` of ``n`` cases; a small model runs on one thread.

    Args:
        model: what ``tithe.zoo.load_model`` takes, or a model already loaded.
        tasks: names; none for every task that fits the model.
        methods: slugs, ``a+b`` for several acting together; none for every method that fits.
        keeps: fractions (floats) or counts (ints).
        question: where recall and picture tasks put their question: ``inside`` the prompt, or ``after`` compression.
        length: tokens of the context, for text tasks.
        repeat: pairs of timings behind each ratio, whose median is taken; at least 3.
        steps: tokens written in each timing.
        baselines: add those of the methods' families at the same budgets.
        params: further parameters, each for the methods that have it.

    Raises:
        BadInput: an unknown name, a value out of range, or a task for another kind of model.
        Refused: no method at all could run; the reason of the first.
    """
    params = params or {}
    chosen = check(tasks, methods, keeps, question, n, seed, length, repeat, params)
    label = name or (model if isinstance(model, str) else type(model.model).__name__)
    loaded = load_model(model) if isinstance(model, str) else model
    todo = registry.check(list(tasks) or list(registry.serving(loaded.kind, label)), loaded.kind, label)
    kind = hosts.find(loaded.model).kind
    chosen = chosen or specs.collect(specs.serving(kind), params)
    everything = {spec.label: spec for spec in (*chosen, *(specs.baselines(chosen, kind) if baselines else ()))}
    setting = Setting(n, seed, question, length)
    bench = _Bench(loaded, label, setting, (repeat, steps), params)
    units = [(task, spec, keep) for task in todo for spec in everything.values() for keep in spec.budgets(keeps)]
    done, total, before = 0, len(units) + len(todo), ""
    with one_thread_if_small(loaded.model):
        for task, spec, keep in units:
            if task.name != before:
                before = task.name
                _tell(progress, done, total, f"{task.name} · untouched")
                bench.untouched(task)
                done += 1
            _tell(progress, done, total, f"{task.name} · {spec.label}" + (f" · {keep}" if keep is not None else ""))
            bench.one(task, spec, keep)
            done += 1
    _tell(progress, done, total, "done")
    wanted = {spec.label for spec in chosen}
    if bench.refused and not any(row.method in wanted for row in bench.rows):
        raise Refused(next(one.reason for one in bench.refused if one.method in wanted))
    return Result(tuple(bench.rows), tuple(bench.refused))


def check(
    tasks: Sequence[str],
    methods: Sequence[str],
    keeps: Sequence[Keep],
    question: str,
    n: int,
    seed: int,
    length: int,
    repeat: int,
    params: dict[str, Any],
) -> list[Spec]:
    """Return the specs of ``methods``, or raise what is wrong with any argument, before a model is loaded."""
    for keep in keeps:
        check_keep(keep)
    for number, value, least in (("n", n, 1), ("repeat", repeat, 3), ("length", length, 1), ("seed", seed, 0)):
        if value < least:
            raise BadInput(f"{number}={value} is out of range; give at least {least}.")
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


class _Bench:
    """Collects rows for one model."""

    def __init__(
        self, loaded: Loaded, label: str, setting: Setting, times: tuple[int, int], params: dict[str, Any]
    ) -> None:
        self.loaded, self.label, self.setting, self.times, self.params = loaded, label, setting, times, params
        self.rows: list[Row] = []
        self.refused: list[Refusal] = []
        self._full: dict[str, float] = {}

    def untouched(self, task: Task) -> None:
        """Run the model as it is for the answers, and once more under Tithe's counters alone for the figures."""
        plain = task.evaluate(self.loaded, untouched, self.setting)
        counted = task.evaluate(self.loaded, self._attach(()), self.setting)
        self._full[task.name] = plain.quality
        bytes_held = {name: getattr(plain.figures, name) for name in ("kv_bytes", "kv_allocated", "kv_bytes_full")}
        outcome = replace(plain, figures=replace(counted.figures, **bytes_held))
        self._add(task, specs.UNTOUCHED, None, outcome, self._timed(alone, task, self._attach(())))

    def one(self, task: Task, spec: Spec, keep: Keep | None) -> None:
        """Run one method at one budget, or note why it cannot be."""
        try:
            attach = self._attach(spec.methods(keep, self.params))
            outcome = task.evaluate(self.loaded, attach, self.setting)
            times = self._timed(ratios, task, attach)
        except TitheError as error:
            self.refused.append(Refusal(self.label, task.name, spec.label, keep, str(error)))
            return
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.refused.append(Refusal(self.label, task.name, spec.label, keep, reason, failed=True))
            return
        self._add(task, spec.label, keep, outcome, times)

    def _attach(self, methods: tuple[Any, ...]) -> Attach:
        def attach() -> AbstractContextManager[Run]:
            model = self.loaded.model
            return on(model, methods) if methods else Run(model, (), "counts", False)

        return attach

    def _timed(self, how: Callable[..., Ratios], task: Task, attach: Attach) -> Ratios:
        repeat, steps = self.times
        inputs = task.sample(self.loaded, self.setting)
        return how(self.loaded.model, inputs, attach, 0 if task.kind == "vit" else steps, repeat)

    def _add(self, task: Task, method: str, keep: Keep | None, outcome: Outcome, times: Ratios) -> None:
        self.rows.append(
            Row(
                self.label,
                task.name,
                method,
                keep,
                outcome.quality,
                self._full[task.name],
                prefill_ratio=times.prefill,
                decode_ratio=times.decode,
                encode_s=times.seconds.encode,
                select_s=times.seconds.select,
                prefill_s=times.seconds.text,
                decode_s=times.seconds.decode,
                n=self.setting.n,
                seed=self.setting.seed,
                question=self.setting.question if task.positions else None,
                **_plain(outcome.figures),
            )
        )


def _plain(cost: Figures) -> dict[str, Any]:
    whole = ("kv_bytes", "kv_allocated", "kv_bytes_full", "flops", "flops_full")
    return {
        name: round(value) if name in whole and value is not None else value for name, value in asdict(cost).items()
    }


def _tell(progress: Progress | None, done: int, total: int, label: str) -> None:
    if progress is not None:
        progress(done, total, label)
