"""What the standard long-context tasks share: a drawn case, its two wordings, and lines woven into a haystack.

`plain` is a terse form in a small closed vocabulary, each word one token of the embedded models; `ruler` is natural
language with the needles, counts and places of RULER (Hsieh et al. 2024, arXiv:2404.06654; NVIDIA/RULER @ c3f5e3b,
Apache-2.0) in sentences of our own. Cases are drawn with NumPy's PCG64 from the seed alone: the same on every machine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from statistics import fmean
from typing import Any, Literal

import numpy as np

from tithe.bench.marking import all_of, any_of
from tithe.bench.prompt import Ask, Prompt, check_window, from_ids, tokenizer_of
from tithe.bench.tasks.base import Questions, Setting
from tithe.bench.tasks.lm import heldout_ids, line_breaks
from tithe.bench.tasks.recall import KEYS, VALUES
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

Wording = Literal["plain", "ruler"]
Span = tuple[int, int]
HAYSTACKS = ("essay", "needles", "noise")
SMALL = 8192
TRIED, ENOUGH = 16, 1.05
COMMANDS = ("set", "get", "copy", "find", "count", "select", "line")
NOISE = "read on from here\n"


def _apart(words: Sequence[str]) -> tuple[str, ...]:
    """The words that stand in no other one, so that a string found in an answer is the word that was meant."""
    free = [word for word in words if word not in COMMANDS]
    return tuple(word for word in free if not any(word != other and word in other for other in KEYS + VALUES))


PLAIN_KEYS = _apart(KEYS)
PLAIN_VALUES = _apart(VALUES)
PLAIN_WORDS = PLAIN_KEYS + PLAIN_VALUES


@dataclass(frozen=True)
class Case:
    """A context and the questions to ask after it.

    Attributes:
        ids: The context's token ids, led by BOS where the tokenizer has one.
        questions: The text that follows the context; encode it without special tokens.
        answers: For every question, what a reader that is right writes behind it, from its leading space on.
        wanted: For every question, the strings to be found in what was written.
        spans: For every question, the half-open token ranges of the context that its answer follows from.
        room: Tokens that an answer may take; None: those of the longest of `answers`.
    """

    ids: tuple[int, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    wanted: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[Span, ...], ...]
    room: int | None = None

    def depth(self, question: int) -> float | None:
        """Where what is asked for begins, 0 to 1 (the mean of several places); None: nowhere in particular."""
        spans = self.spans[question]
        return fmean(start for start, _ in spans) / len(self.ids) if spans else None


@dataclass(frozen=True)
class Standard(Questions):
    """A task drawn in one of two wordings; `setting.length` is that of the context without the question.

    Attributes:
        wording: `plain` (exactly `length` tokens) or `ruler` (at most `length`); None: `plain` where the model's
            tokenizer has fewer than 8,192 tokens, which no natural-language model does, else `ruler`.
    """

    name: str
    wording: Wording | None = None
    kind: HostKind = field(default="llm", kw_only=True)
    sized: bool = field(default=True, kw_only=True)
    home: str | None = field(default="zoo:reader", kw_only=True)

    @abstractmethod
    def draw(self, tokenizer: Any, length: int, seed: int, wording: Wording) -> Case:
        """Return the case of a seed, or raise ValueError with what stands against it."""

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one context, with the questions about it.

        Raises:
            BadInput: the length is too short, the tokenizer cannot write what is hidden, or the window is too small.
        """
        tokenizer = tokenizer_of(loaded)
        wording = self.wording or ("plain" if len(tokenizer) < SMALL else "ruler")
        try:
            case = self.draw(tokenizer, setting.length, seed, wording)
            for answer, wanted in zip(case.answers, case.wanted, strict=True):
                express(tokenizer, (answer, *wanted))
        except ValueError as error:
            raise BadInput(f"task={self.name!r}, length={setting.length}: {error}") from error
        ask = partial(self._ask, loaded, tokenizer, case)
        return Prompt(from_ids(loaded.model, case.ids), tuple(map(ask, range(len(case.questions)))))

    def score(self, given: str, wanted: Sequence[str]) -> float:
        """Return the share of `wanted` in what was written: RULER's string_match_all."""
        return all_of(given, wanted)

    def _ask(self, loaded: Loaded, tokenizer: Any, case: Case, number: int) -> Ask:
        question, answer = case.questions[number], case.answers[number]
        ids = tuple(encoded(tokenizer, question))
        room = case.room or max(len(encoded(tokenizer, one)) for one in case.answers)
        check_window(loaded.model, len(case.ids) + len(ids) + room)
        mark = partial(self.score, wanted=case.wanted[number])
        return Ask(ids, question, answer.strip(), room, mark, case.depth(number))


class AnyOf(Standard):
    """A task of which any one of the wanted strings is enough: RULER's string_match_part."""

    def score(self, given: str, wanted: Sequence[str]) -> float:
        """Return 1 where any of `wanted` stands in what was written."""
        return any_of(given, wanted)


def generator(seed: int) -> np.random.Generator:
    """Return the source of all that is drawn for a seed."""
    return np.random.Generator(np.random.PCG64(seed))


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of `text` without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def express(tokenizer: Any, texts: Sequence[str]) -> None:
    """Raise ValueError for the first of `texts` that does not come back from the tokenizer as it went in.

    Case and the amount of white space may change: neither counts in an answer.
    """
    for text in texts:
        back = tokenizer.decode(encoded(tokenizer, text), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if back.casefold().split() != text.casefold().split():
            raise ValueError(f"the tokenizer cannot express {text.strip()!r}: it reads {back.strip()!r}")


@lru_cache(maxsize=16)
def expressible(tokenizer: Any, texts: tuple[str, ...]) -> None:
    """`express`, once for a tokenizer and a closed vocabulary."""
    express(tokenizer, texts)


@dataclass(frozen=True)
class Woven:
    """Token ids of a haystack with lines in it, and the range that each line takes, in the order of the lines."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def weave(
    tokenizer: Any,
    lines: Sequence[str],
    length: int,
    rng: np.random.Generator,
    haystack: str = "essay",
    filler: Sequence[int] | None = None,
    others: Callable[[int], list[str]] | None = None,
    groups: Sequence[int] | None = None,
) -> Woven:
    """Put `lines` between the lines of a haystack, each anywhere with the same chance, `length` tokens in all.

    Args:
        tokenizer: A Hugging Face tokenizer.
        lines: What to hide, each ending in a newline.
        length: Tokens of the result, BOS included.
        rng: Draws the haystack and the places.
        haystack: `essay`: running text; `noise`: one line again and again; `needles`: lines that `others` makes.
        filler: Token ids of the running text; the held-out standard library by default. Repeated where too short.
        others: Makes that many lines which are like the hidden ones and ask for nothing.
        groups: For every line its group: lines of a group keep their order; by default all keep theirs.

    Raises:
        ValueError: the lines alone are longer than `length`.
    """
    coded: list[list[int]] = tokenizer(list(lines), add_special_tokens=False)["input_ids"]
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - len(head) - sum(map(len, coded))
    if room < 0:
        raise ValueError(f"what is hidden takes {length - room} tokens, the context has {length}")
    text = _haystack(tokenizer, haystack, room, rng, filler, others)
    breaks = line_breaks(tokenizer, text) if room else np.zeros(1, int)
    cuts = _places(breaks, np.zeros(len(lines), int) if groups is None else np.asarray(groups), rng)
    ids, spans, start = head, [(0, 0)] * len(lines), 0
    body = text.tolist()
    for line in np.argsort(cuts, kind="stable").tolist():
        ids = ids + body[start : cuts[line]]
        spans[line] = (len(ids), len(ids) + len(coded[line]))
        ids, start = ids + coded[line], int(cuts[line])
    return Woven((*ids, *body[start:]), tuple(spans))


def _places(breaks: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For every line a break, drawn with replacement and rising within its group."""
    cuts = rng.choice(breaks, len(groups))
    for group in np.unique(groups):
        cuts[groups == group] = np.sort(cuts[groups == group])
    return cuts


def _haystack(
    tokenizer: Any,
    haystack: str,
    room: int,
    rng: np.random.Generator,
    filler: Sequence[int] | None,
    others: Callable[[int], list[str]] | None,
) -> np.ndarray:
    """`room` token ids that end in a newline."""
    end = encoded(tokenizer, "\n")[-1]
    if haystack == "needles" and others is not None:
        each = len(encoded(tokenizer, "".join(others(TRIED)))) / TRIED
        text = np.array(encoded(tokenizer, "".join(others(1 + int(ENOUGH * room / each)))), int)
        ends = np.append(0, line_breaks(tokenizer, text))
        whole = ends[ends <= room][-1]
        return np.append(np.full(room - whole, end), text[:whole])
    if haystack == "noise":
        source = np.array(encoded(tokenizer, NOISE))
    elif haystack == "essay":
        source = np.asarray(heldout_ids(tokenizer) if filler is None else filler)
    else:
        raise ValueError(f"haystack={haystack!r} is not known; possible: {', '.join(HAYSTACKS)}")
    start = rng.integers(0, len(source) - room + 1 if len(source) >= room else len(source))
    window = np.resize(np.roll(source, -start) if len(source) < room else source[start:], room).astype(int)
    window[-1:] = end
    return window
