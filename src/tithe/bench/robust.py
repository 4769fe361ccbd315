"""Robustness: does an answer stay what it is when its context says the same in another order, or in other words?

A method that keeps what stands at a lucky place, or what looks like what it was tuned on, loses when the same facts
stand elsewhere or are said otherwise. A task with such variants is run beside them on the same cases: `task@robust`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from tithe.bench import figures
from tithe.bench.ask import Attach
from tithe.bench.prompt import Inputs
from tithe.bench.tasks.base import Answer, Marked, Setting, Task
from tithe.bench.tasks.lm import line_breaks
from tithe.bench.tasks.recall import RecallCase
from tithe.types import HostKind
from tithe.zoo import Loaded

_SENTENCE = re.compile(r"[^\n]*?(?:[.!?]['\")\]]*(?=\s)|\n|$)\s*")


@dataclass(frozen=True)
class Robust(Task):
    """A task and its variants on the same cases; ``quality`` is the mean over all of them.

    Columns: ``sway``, how far the score of a question moves between its variants (the highest less the lowest, mean
    over questions; 0: no answer's score depends on the form of its context), and ``quality_<variant>``. An untouched
    model sways too: read the column against its row.
    """

    name: str
    of: Task
    others: tuple[Task, ...]
    kind: HostKind = "llm"
    positions: bool = True
    sized: bool = True
    home: str | None = None

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Mark every case in every form."""
        forms = [task.mark(loaded, attach, setting, cases) for task in (self.of, *self.others)]
        return [self._together(case) for case in zip(*forms, strict=True)]

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the first case as it was drawn."""
        return self.of.sample(loaded, setting)

    def check(self, loaded: Loaded, setting: Setting) -> None:
        """Raise what stands against any of the forms."""
        for task in (self.of, *self.others):
            task.check(loaded, setting)

    def _together(self, forms: tuple[Marked, ...]) -> Marked:
        qualities = {
            f"quality_{task.name.rpartition('@')[2]}": form.quality
            for task, form in zip(self.others, forms[1:], strict=True)
        }
        return Marked(
            forms[0].case,
            fmean(form.quality for form in forms),
            tuple(answer for form in forms for answer in form.answers),
            figures.mean([form.figures for form in forms]),
            {**forms[0].extras, "sway": sway([form.answers for form in forms]), **qualities},
            tuple(ids for form in forms for ids in form.ids),
            tuple(logs for form in forms for logs in form.logs),
        )


def against(task: Task, *names: str) -> Robust:
    """Return ``task@robust``, which compares a task with its variants of these names.

    Raises:
        ValueError: the task has no variant of a name.
    """
    others = {name: task.variant(name) for name in names}
    if missing := [name for name, other in others.items() if other is None]:
        raise ValueError(f"{task.name} has no variant {', '.join(missing)}.")
    forms = tuple(other for other in others.values() if other is not None)
    return Robust(f"{task.name}@robust", task, forms, task.kind, task.positions, task.sized, task.home)


def sway(forms: Sequence[Sequence[Answer]]) -> float:
    """Return how far the score of a question moves between forms, the mean over questions, 0 to 1.

    Raises:
        ValueError: no questions, or not the same in all forms.
    """
    asked = [[answer.question for answer in form] for form in forms]
    if not asked or not asked[0] or any(questions != asked[0] for questions in asked):
        raise ValueError("the forms of a task must ask the same questions, in the same order.")
    scores = zip(*([answer.score for answer in form] for form in forms), strict=True)
    return fmean(max(score) - min(score) for score in scores)


def shuffled_case(tokenizer: Any, case: RecallCase, seed: int) -> RecallCase:
    """Return a case with its facts in another order and at other places of the same filler; questions stay.

    Facts are put in front of whole lines of the filler, as they were when drawn.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    lines = [case.ids[start:end] for start, end in case.spans]
    head = int(bool(case.ids) and case.ids[0] == tokenizer.bos_token_id)
    bounds = [head, *(edge for span in case.spans for edge in span), len(case.ids)]
    filler = [token for start, end in zip(bounds[::2], bounds[1::2], strict=True) for token in case.ids[start:end]]
    breaks = line_breaks(tokenizer, np.asarray(filler, dtype=np.int64)) if filler else np.zeros(1, int)
    order, cuts = rng.permutation(len(lines)).tolist(), np.sort(rng.choice(breaks, len(lines))).tolist()
    ids, spans, start = list(case.ids[:head]), [(0, 0)] * len(lines), 0
    for fact, cut in zip(order, cuts, strict=True):
        ids += filler[start:cut]
        spans[fact] = (len(ids), len(ids) + len(lines[fact]))
        ids, start = [*ids, *lines[fact]], cut
    ids += filler[start:]
    by_place = sorted(range(len(lines)), key=lambda fact: spans[fact])
    return replace(
        case,
        context=tokenizer.decode(ids[head:]),
        ids=tuple(ids),
        spans=tuple(spans[fact] for fact in by_place),
        asked=tuple(by_place.index(fact) for fact in case.asked),
    )


def shuffled_text(text: str, seed: int) -> str:
    """Return a text with its sentences, or the lines of text without full stops, in another order.

    For contexts whose order means nothing, such as a collection of facts; the question is no part of it.
    """
    parts = [part for part in _SENTENCE.findall(text) if part]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(parts))
    # What ends a sentence (a space, a newline) stays at its place, so that the layout is the text's own.
    ends = [part[len(part.rstrip()) :] for part in parts]
    return "".join(parts[place].rstrip() + end for place, end in zip(order.tolist(), ends, strict=True))
