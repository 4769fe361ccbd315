"""From the cases of a journal to the rows that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean, stdev
from typing import Any

from tithe.bench import figures, stats
from tithe.bench.figures import Figures
from tithe.bench.journal import Case
from tithe.budget import Keep
from tithe.types import Card

CARD = Card(
    "token-reduction-position",
    "Token Reduction Should Go Beyond Efficiency in Generative Models -- From Vision, Language to Multimodality",
    2025,
    "2505.18227",
    None,
    "measure",
    (),
    "paper-only",
    "none",
    "Dropping tokens touches more than speed: columns for agreement, divergence, hallucination, coherence, robustness, "
    "and quality by depth and length.",
)
DEPTHS = 5
WHOLE = ("kv_bytes", "kv_allocated", "kv_bytes_full", "flops", "flops_full")


@dataclass(frozen=True)
class Row:
    """One method at one budget on one task; ``_full`` figures are the untouched model's.

    ``kept_tokens`` of ``total_tokens`` presented to the last selecting step; bytes when the answer ends; FLOPs of one
    reading of the context and of what is asked about it; ``prefill_ratio`` and ``decode_ratio`` are times over those of
    the untouched model; ``encode_s`` seconds of the vision tower, ``select_s`` of choosing among its tokens,
    ``prefill_s`` of the language model's reading, ``decode_s`` of one token written, medians of the timings.
    None where a task has no such thing, or nothing was timed. ``quality``: see the task.

    ``quality_low`` to ``quality_high`` and ``low`` to ``high`` are 95% intervals, of the quality and of the mean paired
    difference to the untouched model; ``verdict`` what the difference allows to say, and ``needed`` how many cases
    would tell it to `stats.MARGIN`. ``spread``: deviation between the means of ``repeats`` seeds, ``seed`` the first.
    ``agreement``: share of answers that are the untouched model's; ``kl``: nats from its next-token distribution to
    this one. ``by_depth``: (middle, mean score, answers) by the place of what was asked for. ``extras``: further
    columns of the task.
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
    prefill_ratio: float | None
    decode_ratio: float | None
    saving: str
    n: int
    seed: int
    question: str | None
    encode_s: float | None = None
    select_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    length: int | None = None
    repeats: int = 1
    spread: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "too few"
    needed: int | None = None
    agreement: float | None = None
    kl: float | None = None
    by_depth: tuple[tuple[float, float, int], ...] = ()
    extras: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, the extras as columns like the others."""
        told = asdict(self)
        extras = told.pop("extras")
        return told | {name: value for name, value in extras.items() if name not in told}


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
        return {"rows": [row.to_dict() for row in self.rows], "refused": [asdict(one) for one in self.refused]}


@dataclass(frozen=True)
class Place:
    """Where a row stands: the fields that are not measured."""

    model: str
    task: str
    method: str
    keep: Keep | None
    question: str | None
    length: int | None
    seed: int


def row(
    place: Place,
    seeds: Sequence[tuple[Mapping[int, Case], Mapping[int, Case]]],
    times: Mapping[str, float | None] | None,
) -> Row:
    """Return the row of the cases that both have, for each seed one's own and those of the untouched model."""
    pairs = [[(mine[at], plain[at]) for at in sorted(mine) if at in plain] for mine, plain in seeds]
    both = [pair for some in pairs for pair in some]
    mine, plain = [one for one, _ in both], [other for _, other in both]
    quality = [one.quality for one in mine]
    bounded = all(0 <= case.quality <= 1 for case in (*mine, *plain))
    told = stats.interval(quality, 1.0 if bounded else None)
    change = stats.interval(stats.paired(quality, [one.quality for one in plain]), 1.0 if bounded else None)
    alike = place.method == "untouched"
    means = [fmean(one.quality for one, _ in some) for some in pairs if some]
    return Row(
        **vars(place),
        quality=told.mean,
        quality_full=fmean(one.quality for one in plain),
        **_cost(figures.mean([one.figures for one in mine])),
        **_times(times or {}),
        n=len(both),
        repeats=len(means),
        spread=stdev(means) if len(means) > 1 else None,
        quality_low=_within(told.low, bounded),
        quality_high=_within(told.high, bounded),
        low=0.0 if alike else change.low,
        high=0.0 if alike else change.high,
        verdict="equal" if alike else stats.verdict(change),
        needed=None if alike else change.needed,
        agreement=_mean(one.agreement for one in mine),
        kl=_mean(one.kl for one in mine),
        by_depth=by_depth(mine),
        extras=_extras(mine),
    )


def by_depth(cases: Iterable[Case], bins: int = DEPTHS) -> tuple[tuple[float, float, int], ...]:
    """Return (middle, mean score, answers) of each of ``bins`` stretches of the context, empty ones left out."""
    found: dict[int, list[float]] = {}
    for case in cases:
        for answer in case.answers:
            if answer.depth is not None:
                found.setdefault(min(int(answer.depth * bins), bins - 1), []).append(answer.score)
    return tuple(((at + 0.5) / bins, fmean(scores), len(scores)) for at, scores in sorted(found.items()))


def _cost(cost: Figures) -> dict[str, Any]:
    return {
        one.name: round(value) if one.name in WHOLE and value is not None else value
        for one in fields(cost)
        for value in (getattr(cost, one.name),)
    }


def _times(told: Mapping[str, float | None]) -> dict[str, Any]:
    seconds = {name: told.get(name) for name in ("encode_s", "select_s", "prefill_s", "decode_s")}
    return {"prefill_ratio": told.get("prefill"), "decode_ratio": told.get("decode"), **seconds}


def _extras(cases: Sequence[Case]) -> dict[str, float]:
    names = dict.fromkeys(name for case in cases for name in case.extras)
    return {name: fmean(case.extras[name] for case in cases if name in case.extras) for name in names}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _within(value: float | None, bounded: bool) -> float | None:
    return min(max(value, 0.0), 1.0) if bounded and value is not None else value
