"""Which tokens of a prompt an answer came from: time, whether the right line is found, and agreement."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.cases import drawn, weights
from benchmarks.peers.rows import Row, agreed, graded, timed
from benchmarks.peers.settings import Scale
from benchmarks.peers.turns import pair

OURS = "tova"
SAID = (
    "One question a prompt, on `zoo:llm`: which tokens did the first word of the answer come from? *Line found* is the "
    "share of the asked line's tokens among as many highest scores, *first on the line* how often the highest is one "
    "of them. Ours is the attention that the last query pays, mean over heads and layers "
    '(`tithe.on(model, "tova", level="scores")`); times are those of a whole call.'
)


def beside(python: str, theirs: str, methods: Sequence[str], scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows of ``methods`` of the worker ``theirs``, the same prompts on both sides in turns."""
    cases = drawn(scale.asked, scale.attributed, asked=1, seed=1_000)
    with pair(python, "seen_side", theirs, folder) as workers:
        for method in methods:
            workers.ours.do("load", folder=weights(), method=OURS)
            workers.theirs.do("load", folder=weights(), method=method)
            times: tuple[list[float], list[float]] = ([], [])
            found: tuple[list[float], list[float]] = ([], [])
            first: tuple[list[float], list[float]] = ([], [])
            alike = []
            for number, case in enumerate((cases[0], *cases)):
                (one,) = case.questions
                ids, scores = [*case.ids, *one.ids], []
                for side in (0, 1) if number % 2 else (1, 0):
                    times[side].append(workers[side].do("attribute", ids=ids, target=one.first))
                for side in (0, 1):
                    scores.append(workers[side].do("last"))
                    found[side].append(hit(scores[side], one.line))
                    first[side].append(hit(scores[side], one.line, 1))
                alike.append(statistics.correlation(*scores))
            name = f"{method}, {scale.attributed} tokens"
            yield timed("time", name, times[0][1:], times[1][1:])
            yield graded("line found", name, found[0][1:], found[1][1:])
            yield graded("first on the line", name, first[0][1:], first[1][1:])
            kind = "same definition" if method == "attention" else "different definitions"
            yield agreed("correlation of the scores", f"{name} ({kind})", alike[1:], "Pearson")


def hit(scores: Sequence[float], line: tuple[int, int], count: int | None = None) -> float:
    """Return which share of the ``count`` highest ``scores``, by default as many as it is long, is of ``line``."""
    count = line[1] - line[0] if count is None else count
    best = sorted(range(len(scores)), key=lambda place: -scores[place])[:count]
    return sum(line[0] <= place < line[1] for place in best) / count
