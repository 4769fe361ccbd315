"""What is measured of a cache on both sides: answers, prefills, decode steps and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import drawn, marks, weights, written
from benchmarks.peers.rows import Row, exact, graded, timed
from benchmarks.peers.settings import Scale
from benchmarks.peers.turns import Pair, rounds

Asked = tuple[str, dict[str, Any] | None, dict[str, Any] | None]
WARM = 256
UNTOUCHED: Asked = ("untouched", None, None)


def figures(
    workers: Pair, recalled: Sequence[Asked], half: Sequence[Asked], every: Sequence[Asked], scale: Scale, folder: Path
) -> Iterator[Row]:
    """Yield the figures that ``scale`` asks for: answers of ``recalled``, prefills of ``half``, steps of ``every``."""
    if "recall" in scale.figures:
        yield from recall(workers, recalled, scale, folder)
    if "prefill" in scale.figures:
        yield from prefills(workers, half, scale)
    if "decode" in scale.figures:
        yield from steps(workers, every, scale)


def recall(workers: Pair, asked: Sequence[Asked], scale: Scale, folder: Path) -> Iterator[Row]:
    """Put the same questions to the same weights, after the context was compressed and inside the prompt."""
    cases = drawn(scale.cases, scale.context, asked=2)
    path = str(written(cases, folder / "cases.json"))
    workers.both("load", folder=weights())
    for where in ("after", "inside"):
        for name, mine, other in asked:
            ours = workers.ours.do("answers", cases=path, method=mine, where=where)
            theirs = workers.theirs.do("answers", cases=path, method=other, where=where)
            case = f"{name}, question {where}, {scale.context} tokens"
            yield graded("recall", case, marks(cases, ours), marks(cases, theirs))


def prefills(workers: Pair, asked: Sequence[Asked], scale: Scale) -> Iterator[Row]:
    """Time reading a prompt, compression included, in a random model of two layers."""
    workers.both("load", folder=weights(), random=True, layers=2)
    jobs = [
        (name, {"tokens": scale.tokens, "method": mine}, {"tokens": scale.tokens, "method": other})
        for name, mine, other in asked
    ]
    for _, mine, other in asked:
        workers.ours.do("prefill", tokens=WARM, method=mine)
        workers.theirs.do("prefill", tokens=WARM, method=other)
    yield from _timed("prefill", rounds(workers, jobs, "prefill", scale.slow, warm=0), scale)


def steps(workers: Pair, asked: Sequence[Asked], scale: Scale) -> Iterator[Row]:
    """Time decoding in a random model of two layers, and count the bytes behind the cache afterwards."""
    workers.both("load", folder=weights(), random=True, layers=2)
    for name, mine, other in asked:
        workers.ours.do("fill", key=name, tokens=scale.tokens, method=mine)
        workers.theirs.do("fill", key=name, tokens=scale.tokens, method=other)
    times = rounds(workers, [(name, {"key": name}, {"key": name}) for name, _, _ in asked], "decode", scale.quick)
    yield from _timed("decode", times, scale)
    full = workers.theirs.do("kept", key=UNTOUCHED[0])
    for name, mine, _ in asked:
        if mine is not None:
            ours, theirs = workers.both("kept", key=name)
            case = f"{name}, {scale.tokens} tokens"
            yield exact("bytes", case, ours / full, theirs / full, "of the stock cache")
    workers.both("free")


def _timed(figure: str, times: dict[str, tuple[list[float], list[float]]], scale: Scale) -> Iterator[Row]:
    base = times[UNTOUCHED[0]]
    for name, found in times.items():
        yield timed(figure, f"{name}, {scale.tokens} tokens", *found, None if name == UNTOUCHED[0] else base)
