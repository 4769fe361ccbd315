"""What a choice must satisfy, and what it is to cost little of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tithe.bench.rows import Row
from tithe.errors import BadInput, unknown
from tithe.types import HostKind

Cost = Literal["kv", "flops", "prefill", "decode"]
COSTS: dict[Cost, str] = {
    "kv": "KV bytes",
    "flops": "FLOPs",
    "prefill": "time of reading",
    "decode": "time of a token written",
}
TIMED: tuple[Cost, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class Constraints:
    """``max_drop`` of quality against the untouched model, on the task's scale; bytes of the cache that are held when
    the answer ends; times over the untouched model's. None: no limit.

    Raises:
        BadInput: a limit out of its range.
    """

    max_drop: float = 0.01
    max_kv: int | None = None
    max_prefill_ratio: float | None = None
    max_decode_ratio: float | None = None

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise BadInput(f"max_drop={self.max_drop!r} is out of range; give at least 0, such as 0.01.")
        for name in ("max_kv", "max_prefill_ratio", "max_decode_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadInput(f"{name}={value!r} is out of range; give more than 0.")

    @property
    def timed(self) -> bool:
        """Whether timings are needed to tell."""
        return self.max_prefill_ratio is not None or self.max_decode_ratio is not None

    def violation(self, row: Row, whole: bool = False) -> float:
        """Return by how much ``row`` misses the limits, as a sum of shares of each; 0 where it satisfies all.

        ``whole``: what was not measured is missed; else it is passed over.
        """
        missed = max(0.0, drop(row) - self.max_drop)
        for limit, value in (
            (self.max_kv, row.kv_allocated),
            (self.max_prefill_ratio, row.prefill_ratio),
            (self.max_decode_ratio, row.decode_ratio),
        ):
            if limit is not None and value is not None:
                missed += max(0.0, value / limit - 1)
            elif limit is not None and whole:
                missed = float("inf")
        return missed

    def sure(self, row: Row) -> bool:
        """Whether the whole interval of the drop lies within its limit."""
        return row.low is not None and -row.low <= self.max_drop

    def hopeless(self, row: Row) -> bool:
        """Whether the whole interval of the drop lies beyond its limit, or a limit of bytes is missed."""
        beyond = row.high is not None and -row.high > self.max_drop
        return beyond or (self.max_kv is not None and row.kv_allocated is not None and row.kv_allocated > self.max_kv)

    def __str__(self) -> str:
        given = [("max_drop", f"{self.max_drop:g}")]
        if self.max_kv is not None:
            given.append(("max_kv", f"{self.max_kv:,} bytes"))
        for name in ("max_prefill_ratio", "max_decode_ratio"):
            if getattr(self, name) is not None:
                given.append((name, f"{getattr(self, name):g}"))
        return ", ".join(f"{name}={value}" for name, value in given)


def drop(row: Row) -> float:
    """Return the mean drop of quality against the untouched model; negative where it rose."""
    return row.quality_full - row.quality


def cost(row: Row, of: Cost) -> float:
    """Return what a row costs, as a share of the untouched model's; infinite where it was not measured."""
    if of == "kv":
        return _share(row.kv_allocated, row.kv_bytes_full)
    if of == "flops":
        return _share(row.flops, row.flops_full)
    value = row.prefill_ratio if of == "prefill" else row.decode_ratio
    return float("inf") if value is None else value


def fitting(of: str | None, kind: HostKind) -> Cost:
    """Return the cost that is asked for, or what models of ``kind`` pay most for."""
    if of is None:
        return "kv" if kind == "llm" else "flops"
    if of not in COSTS:
        raise unknown("minimise", of, COSTS)
    return of  # type: ignore[return-value]


def _share(part: float | None, whole: float | None) -> float:
    return float("inf") if part is None or not whole else part / whole
