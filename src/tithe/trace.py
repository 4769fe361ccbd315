"""What happened: counts, columns and scores by level, FLOPs from shapes, bytes from storages, times by phase."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tithe import display
from tithe.types import Phase, Point, Saving, Selection, Tokens, Tower

Level = Literal["counts", "kept", "scores", "history"]


@dataclass(frozen=True)
class Event:
    """The latest firing of one step at one layer. ``fired`` counts all of them; tensors are on the CPU.

    ``end`` counts the original columns seen when it fired. ``kept`` and ``seen`` hold one number a row;
    ``heads_kept`` a list per row. ``cols`` and ``keep`` are ``[B, H, n]``: the columns presented, and which were kept;
    ``dest`` the place among those presented that each token went into, -1 for none (see ``destinations``).
    """

    method: str
    step: int
    point: Point
    tower: Tower
    layer: int | None
    phase: Phase
    fired: int
    end: int
    seen: tuple[int, ...]
    kept: tuple[float, ...]
    heads_kept: tuple[tuple[int, ...], ...]
    saving: Saving
    cols: Tensor | None = None
    keep: Tensor | None = None
    dest: Tensor | None = None
    scores: Tensor | None = None

    def _repr_html_(self) -> str:
        return display.event(self)


def destinations(selection: Selection) -> Tensor | None:
    """Return the place that each token goes into, ``[B, H, n]`` on the CPU, -1 for none; None if nothing is merged.

    Where tokens are mixed, one that is not kept goes to the kept one that takes the greatest share of it.
    """
    dest = None if selection.dest is None else selection.dest.detach().to("cpu", torch.long, copy=True)
    if selection.mix is None:
        return dest
    mix, keep = selection.mix.detach().cpu(), selection.keep[:, 0].cpu()
    mix = mix.coalesce() if mix.is_sparse else mix.to_sparse()
    (row, into, of), share = mix.indices(), mix.values().abs().float()
    used = keep[row, into] & ~keep[row, of] & (share > 0)
    row, into, of, share = row[used], into[used], of[used], share[used]
    shape, flat = keep.shape, row * keep.shape[1] + of
    greatest = torch.zeros(keep.numel()).scatter_reduce(0, flat, share, "amax")
    first = share == greatest[flat]
    found = torch.full((keep.numel(),), keep.shape[1]).scatter_reduce(0, flat[first], into[first], "amin")
    taken = torch.where(found < shape[1], found, -1).view(shape)[:, None]
    return taken if dest is None else torch.where(dest >= 0, dest, taken)


@dataclass
class Clock:
    """Seconds and forwards of one phase."""

    seconds: float = 0.0
    forwards: int = 0

    def add(self, seconds: float) -> None:
        """Count one forward."""
        self.seconds += seconds
        self.forwards += 1


class Trace:
    """All that reports, pages and benchmarks read. Only the latest event of each step and layer is held.

    Level ``history`` holds every event with its tensors: for oracles and debugging, since it grows with each step.
    """

    def __init__(self, level: Level = "counts") -> None:
        self.level = level
        self.flops = 0
        self.flops_full = 0
        self.clocks: dict[str, Clock] = {"prefill": Clock(), "decode": Clock(), "encode": Clock(), "select": Clock()}
        self.history: list[Event] = []
        self.counts: dict[str, tuple[int, int]] = {}
        self._events: dict[tuple[str, int, int | None, str, int], Event] = {}

    @property
    def events(self) -> tuple[Event, ...]:
        """The latest event of every step and layer, in the order in which they first fired."""
        return tuple(self._events.values())

    def tally(self, counts: dict[str, tuple[int, int]]) -> None:
        """Add what was spent, of how much, by name."""
        for name, (spent, whole) in counts.items():
            before = self.counts.get(name, (0, 0))
            self.counts[name] = (before[0] + spent, before[1] + whole)

    def record(
        self,
        method: str,
        step: int,
        site: tuple[Point, Tower, int | None, Phase],
        tokens: Tokens,
        scores: Tensor | None,
        selection: Selection | None,
        saving: Saving,
        item: int = 0,
        end: int = 0,
    ) -> None:
        """Note one firing; ``item`` tells apart the images of one forward."""
        point, tower, layer, phase = site
        key = (method, step, layer, phase, item)
        fired = self._events[key].fired + 1 if key in self._events else 1
        deep, deepest = self.level != "counts", self.level in ("scores", "history")
        counts = selection.counts() if selection is not None else tokens.valid.sum(-1)
        self._events[key] = event = Event(
            method,
            step,
            point,
            tower,
            layer,
            phase,
            fired,
            end,
            tuple(tokens.seen.tolist()),
            tuple(counts.double().mean(-1).tolist()),
            tuple(tuple(row) for row in counts.tolist()),
            saving,
            cols=tokens.cols.detach().to("cpu", copy=True) if deep else None,
            keep=selection.keep.detach().to("cpu", copy=True) if deep and selection is not None else None,
            dest=destinations(selection) if deep and selection is not None else None,
            scores=scores.detach().to("cpu", copy=True) if deepest and scores is not None else None,
        )
        if self.level == "history":
            self.history.append(event)

    def _repr_html_(self) -> str:
        return display.trace(self)


@dataclass(frozen=True)
class Report:
    """The figures of a run so far. Bytes are of the last cache used; ``kv_full`` is what nothing dropped would hold.

    Ratios to an untouched run need one beside it: see ``tithe bench``. ``counts`` are shares of work, by name;
    ``kv_host`` bytes lie in the machine's memory beside the device's.
    """

    methods: tuple[str, ...]
    saving: Saving
    kept_tokens: float | None
    total_tokens: float | None
    kv_live: int
    kv_allocated: int
    kv_full: int
    flops: int
    flops_full: int
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    counts: dict[str, float] = field(default_factory=dict)
    kv_host: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return display.report(self)

    def __str__(self) -> str:
        share = (
            f"{self.kept_tokens:.1f} of {self.total_tokens:.1f}"
            if self.kept_tokens is not None and self.total_tokens
            else "all"
        )
        lines = [
            f"{' + '.join(self.methods)} ({self.saving} saving)",
            f"  tokens kept    {share}",
            f"  KV bytes       {self.kv_live:,} live, {self.kv_allocated:,} allocated, {self.kv_full:,} untouched",
            f"  FLOPs          {self.flops:,} of {self.flops_full:,} untouched",
        ]
        lines += [
            f"  {phase:<14} {self.seconds[phase]:.4f} s in {self.forwards[phase]} forwards" for phase in self.seconds
        ]
        lines += [f"  {name:<14} {share:.1%}" for name, share in self.counts.items()]
        lines += [f"  on the host    {self.kv_host:,} bytes"] if self.kv_host else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


class Counter:
    """FLOPs by integer arithmetic on shapes: 2 per multiply-add, causal halves not taken off, LM head included."""

    def __init__(self, trace: Trace, layers: list[torch.nn.Module], config: Any) -> None:
        self.trace = trace
        self._dense = [_matmul_parameters(layer, config) for layer in layers]

    def linear(self, index: int, rows: int, tokens: int, full: int) -> None:
        """Count the projections and the MLP of one layer for ``tokens`` of ``full`` per row."""
        self.trace.flops += 2 * rows * tokens * self._dense[index]
        self.trace.flops_full += 2 * rows * full * self._dense[index]

    def attention(self, query: Tensor, held: int, width: int, end: int) -> None:
        """Count QK and PV of ``query [B, H, T, d]`` over ``held`` keys; untouched: ``width`` queries over ``end``."""
        rows, heads, steps, dim = query.shape
        self.trace.flops += 4 * rows * heads * steps * dim * held
        self.trace.flops_full += 4 * rows * heads * width * dim * end

    def pairs(self, query: Tensor, pairs: int, width: int, end: int) -> None:
        """Count QK and PV of as many ``pairs`` of a query with a key; untouched: ``width`` queries over ``end``."""
        rows, heads, _, dim = query.shape
        self.trace.flops += 4 * dim * pairs
        self.trace.flops_full += 4 * rows * heads * width * dim * end

    def head(self, parameters: int, rows: int, tokens: int, full: int) -> None:
        """Count the output head."""
        self.trace.flops += 2 * rows * tokens * parameters
        self.trace.flops_full += 2 * rows * full * parameters


def _matmul_parameters(layer: torch.nn.Module, config: Any) -> int:
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    active = getattr(config, "num_experts_per_tok", None)
    share = active / experts if experts and active else 1.0
    total = 0
    for name, parameter in layer.named_parameters():
        if parameter.dim() >= 2:
            total += round(parameter.numel() * (share if ".experts." in name else 1.0))
    return total


class Stopwatch:
    """Times a block into a clock; waits for the accelerator first and last, if there is one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._start = 0.0

    def __enter__(self) -> Stopwatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin."""
        synchronise()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End, and count one forward."""
        synchronise()
        self.clock.add(time.perf_counter() - self._start)


def synchronise() -> None:
    """Wait for queued accelerator work, so that a time is that of the work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
