"""Needle threading: needles in a store of key-value pairs, and threads of pairs whose value is the next one's key.

Roberts, Han, Albanie 2024, "Needle Threading: Can LLMs Follow Threads through Near-Million-Scale Haystacks?",
arXiv:2411.05000, https://github.com/jonathan-roberts1/needle-threading @ 006f8f5 (MIT). Deviation: the wording of the
questions is ours; replies are read for UUIDs where the authors let a second model read them; words instead of UUIDs,
and the whole way to a thread's end asked for, are for small models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple, get_args

from tithe.bench.ask import Attach
from tithe.bench.prompt import Ask, Prompt, check_window, from_ids, tokenizer_of
from tithe.bench.tasks.base import NO_HOME, Marked, Questions, Setting
from tithe.bench.tasks.haystack import Direction, Form, Placement, Symbols, ThreadCase, thread_case
from tithe.errors import BadInput
from tithe.types import Card, HostKind
from tithe.zoo import Loaded

CARD = Card(
    slug="needle-threading",
    title="Needle Threading: Can LLMs Follow Threads through Near-Million-Scale Haystacks?",
    year=2024,
    arxiv="2411.05000",
    code="jonathan-roberts1/needle-threading",
    family="measure",
    hosts=("llm",),
    fidelity="oracle",
    saving="none",
    mechanism="Six tasks over a store of UUIDs or words: one needle, several, those under a condition, threads, "
    "several at once, branched ones; and the effective context limit.",
)
DEPTHS = 11
SMALL = 8192
_UUID = re.compile(r"[0-9a-f*]{8}-(?:[0-9a-f*]{4}-){3}[0-9a-f*]{12}")
_SPARE = {"uuid": 8, "words": 1}


class Size(NamedTuple):
    """What is hidden: ``threads`` of ``steps`` pairs; keys of ``branching`` pairs, of side branches up to ``stray``."""

    threads: int = 1
    steps: int = 1
    branching: int = 1
    stray: int | None = None


@dataclass(frozen=True)
class Threads(Questions):
    """One question to a store of ``setting.length`` tokens at most; the score is the share of its values found.

    Attributes:
        form: What is asked, see `haystack.thread_case`.
        uuid: The sizes with UUIDs, words: with words; the paper goes from 1 to 25 needles, 2 to 25 steps and threads.
        direction: Of threads through the store; placement: of needles in it; random by default.
        grid: How many depths the needle takes in turn, from the first pair to the last; 0: wherever it falls.
        symbols: ``uuid`` as in the paper, ``words`` for models too small to copy those; None: words where the tokenizer
            has fewer than 8,192 tokens.
    """

    name: str
    form: Form
    uuid: Size
    words: Size
    direction: Direction = "random"
    placement: Placement = "random"
    grid: int = 0
    symbols: Symbols | None = None
    kind: HostKind = "llm"
    sized: bool = True
    home: str | None = "zoo:reader"

    def case(self, tokenizer: Any, length: int, seed: int) -> ThreadCase:
        """Return the case of one seed.

        Raises:
            BadInput: A length too short for the needles, or a tokenizer that cannot express the symbols.
        """
        symbols = self.symbols or ("words" if len(tokenizer) < SMALL else "uuid")
        try:
            return thread_case(
                tokenizer,
                length=length,
                seed=seed,
                symbols=symbols,
                form=self.form,
                direction=self.direction,
                placement=self.placement,
                depth=seed % self.grid / (self.grid - 1) if self.grid > 1 else None,
                **(self.uuid if symbols == "uuid" else self.words)._asdict(),
            )
        except ValueError as error:
            raise BadInput(f"task={self.name!r}, length={length}: {error}") from error

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one store with its question; its depth is the mean place of the pairs asked for."""
        tokenizer = tokenizer_of(loaded)
        case = self.case(tokenizer, setting.length, seed)
        ids, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (case.question, case.answer))
        symbols: Symbols = "words" if case.context[0] != "{" else "uuid"
        room = len(answer) + _SPARE[symbols]
        check_window(loaded.model, len(case.ids) + len(ids) + room)
        mark = partial(score, wanted=case.paths, symbols=symbols, form=self.form)
        one = Ask(tuple(ids), case.question, case.answer.strip(), room, mark, fmean(case.depths))
        return Prompt(from_ids(loaded.model, case.ids), (one,))

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Ask the question of every case; ``characters`` of the store, the paper's measure of length, is an extra."""
        tokenizer = tokenizer_of(loaded)
        told = super().mark(loaded, attach, setting, cases)
        sizes = [len(self.case(tokenizer, setting.length, setting.of(case)).context) for case in cases]
        return [replace(one, extras={**one.extras, "characters": size}) for one, size in zip(told, sizes, strict=True)]

    def variant(self, name: str) -> Threads | None:
        """Return the task with other symbols, or with its needles placed or its threads directed otherwise."""
        if name in get_args(Symbols):
            return replace(self, name=f"{self.name}@{name}", symbols=name)  # type: ignore[arg-type]
        several, chained = self.uuid.threads * self.uuid.steps > 1, self.uuid.steps > 1
        if name == "clustered" and several:
            return replace(self, name=f"{self.name}@{name}", placement="clustered")
        if name in ("forward", "backward") and chained:
            return replace(self, name=f"{self.name}@{name}", direction=name)  # type: ignore[arg-type]
        return None


def score(given: str, *, wanted: Sequence[Sequence[str]], symbols: Symbols, form: Form) -> float:
    """Return the share of the threads ``wanted`` whose last value was given.

    Values of keys asked for count in their order, those of marked keys in any; UUIDs are read wherever they stand in
    ``given``. Words count on its first line, where a thread may be told up to its end or beyond it.
    """
    ends = [path[-1] for path in wanted]
    if symbols == "uuid":
        said = _UUID.findall(given.lower())
    else:
        line = given.strip().split("\n")[0]
        if form in ("path", "long"):
            ways = [way.split() for way in line.split(",")]
            return fmean(
                bool(way) and path[-1] in (way[-1], *way[len(path) - 2 : len(path) - 1])
                for path, way in zip(wanted, [*ways, *[[]] * len(wanted)], strict=False)
            )
        said = line.split()
    if form == "all":
        return fmean(end in said for end in ends)
    return fmean(one == end for one, end in zip([*said, *[""] * len(ends)], ends, strict=False))


SINGLE = Threads("single-needle", "get", uuid=Size(), words=Size(), grid=DEPTHS)
MULTIPLE = Threads("multiple-needles", "get", uuid=Size(10), words=Size(4))
CONDITIONAL = Threads("conditional-needles", "all", uuid=Size(10), words=Size(4))
THREADING = Threads("threading", "path", uuid=Size(1, 5), words=Size(1, 3))
MULTI_THREADING = Threads("multi-threading", "path", uuid=Size(5, 5), words=Size(2, 2))
BRANCHED = Threads("branched-threading", "long", uuid=Size(1, 5, 2), words=Size(1, 3, 2, 1), home=NO_HOME)
ALL: tuple[Threads, ...] = (SINGLE, MULTIPLE, CONDITIONAL, THREADING, MULTI_THREADING, BRANCHED)
