"""What a run cost, in numbers that can be averaged over cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tithe.types import Saving

if TYPE_CHECKING:
    from tithe.flow import Run


@dataclass(frozen=True)
class Figures:
    """Tokens kept of those presented; bytes of the cache when the answer ends; FLOPs from the first token to the last.

    None: the task has no such thing, as a classifier has no cache.
    """

    kept_tokens: float | None
    total_tokens: float | None
    kv_bytes: float | None
    kv_allocated: float | None
    kv_bytes_full: float | None
    flops: float | None
    flops_full: float | None
    saving: Saving


NOTHING = Figures(None, None, None, None, None, None, None, "none")


def of_run(run: Run, tokens: int | None = None, rows: int = 1) -> Figures:
    """Return the figures of ``run`` per row of its batch; ``tokens`` were presented where no step selected."""
    report = run.report()
    total = report.total_tokens if report.total_tokens is not None else tokens
    kept = report.kept_tokens if report.kept_tokens is not None else total
    cached = run.cache is not None

    def share(value: float) -> float | None:
        return value / rows if cached else None

    return Figures(
        kept,
        total,
        share(report.kv_live),
        share(report.kv_allocated),
        share(report.kv_full),
        report.flops / rows,
        report.flops_full / rows,
        report.saving,
    )


def of_cache(cache: Any) -> Figures:
    """Return the bytes in a cache of transformers' own, and of the storages behind it; an untouched model counts no
    more than that."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    live = float(sum(t.nbytes for t in tensors))
    allocated = float(sum(t.untyped_storage().nbytes() for t in tensors))
    return Figures(None, None, live, allocated, live, None, None, "none")


def mean(figures: Sequence[Figures]) -> Figures:
    """Return the average over cases; a saving counts as simulated if any case's is."""
    savings = {one.saving for one in figures}
    saving: Saving = "simulated" if "simulated" in savings else "real" if "real" in savings else "none"
    names = [field.name for field in fields(Figures) if field.name != "saving"]
    columns = {name: [getattr(one, name) for one in figures] for name in names}
    return Figures(
        **{name: None if None in column else fmean(column) for name, column in columns.items()}, saving=saving
    )
