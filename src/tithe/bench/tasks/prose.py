"""Contexts in natural language: running text of real sentences, and as much of it as fits into a length."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tithe.bench.prompt import read_text
from tithe.bench.tasks.cases import Case, Span, encoded
from tithe.bench.tasks.lm import heldout_text
from tithe.errors import BadInput

MARK = "0123456789"
PLACES = 40


@lru_cache(maxsize=4)
def sentences(source: str | None = None) -> tuple[str, ...]:
    """Return the sentences of the text file `source`; by default those of the held-out text's docstrings.

    Raises:
        BadInput: the file cannot be read, or has fewer than two sentences.
    """
    if source is None:
        blocks = re.findall(r'"""(.*?)"""', heldout_text(), re.S)
        return tuple(one for block in blocks for one in _split(block) if _is_sentence(one))
    found = tuple(_split(read_text(Path(source))))
    if len(found) < 2:
        raise BadInput(f"source={source!r} holds {len(found)} sentences; running text needs two or more.")
    return found


def running(source: str | None, words: int, first: int) -> list[str]:
    """Return sentences of `words` words in all, from number `first` on and round again; the last one may be cut."""
    text = sentences(source)
    taken: list[str] = []
    while words > 0:
        part = text[(first + len(taken)) % len(text)].split()[:words]
        taken.append(" ".join(part))
        words -= len(part)
    return taken


def spread(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` different ones of 40 even depths from 0 to 1, in rising order: where RULER lets needles stand."""
    if count > PLACES:
        raise ValueError(f"running text takes at most {PLACES} needles, got {count}")
    return np.sort(rng.choice(PLACES, count, replace=False)) / (PLACES - 1)


@dataclass(frozen=True)
class Query:
    """A question about a context: its text, the words an answer begins with, what is right, and where that stands."""

    text: str
    prefix: str
    answer: str
    wanted: tuple[str, ...]
    evidence: tuple[str, ...] = ()


def written(
    tokenizer: Any, length: int, build: Callable[[int], str], queries: Sequence[Query], room: int, least: int = 1
) -> Case:
    """Write the largest context `build(n)`, `n >= least`, that has at most `length` tokens.

    A chat template is put around context and question where the tokenizer has one; an answer begins after `prefix`.

    Raises:
        ValueError: the smallest context is too long.
    """
    head, tail = _chat(tokenizer)
    bos = [] if head or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def cost(n: int) -> int:
        return len(bos) + len(encoded(tokenizer, head + build(n)))

    context = head + build(fitted(cost, length, least))
    ids = (*bos, *encoded(tokenizer, context))
    spans = tuple(tuple(_span(tokenizer, context, one, len(bos)) for one in query.evidence) for query in queries)
    answers = tuple(f" {query.answer}" for query in queries)
    return Case(
        ids=ids,
        questions=tuple(query.text + tail + query.prefix for query in queries),
        answers=answers,
        wanted=tuple(query.wanted for query in queries),
        spans=spans,
        room=max(room, *(len(encoded(tokenizer, answer)) for answer in answers)),
    )


def fitted(cost: Callable[[int], int], limit: int, least: int) -> int:
    """Return the largest `n >= least` found with `cost(n) <= limit`, for a cost that grows about evenly.

    Raises:
        ValueError: `cost(least)` is above `limit`.
    """
    low, taken = least, cost(least)
    if taken > limit:
        raise ValueError(f"the shortest context takes {taken} tokens")
    high, over = low, taken
    while over <= limit:
        low, taken = high, over
        high = 2 * high + 1
        over = cost(high)
    while high - low > 1:
        guess = low + int((limit - taken) / (over - taken) * (high - low))
        n = min(max(guess, low + 1), high - 1)
        price = cost(n)
        if price <= limit:
            low, taken = n, price
        else:
            high, over = n, price
    return low


def _chat(tokenizer: Any) -> tuple[str, str]:
    """What a chat template puts before and behind what a user says; nothing without one."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    said = [{"role": "user", "content": MARK}]
    head, _, tail = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True).partition(MARK)
    return head, tail


def _span(tokenizer: Any, context: str, text: str, offset: int) -> Span:
    """The tokens of `context` that hold the first `text` in it."""
    start = context.index(text)
    parts = (context[:start].rstrip(" "), context[: start + len(text)])
    first, last = (len(encoded(tokenizer, part)) for part in parts)
    return first + offset, last + offset


def _split(text: str) -> list[str]:
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*[-*>+|])", text)
    return [one for part in paragraphs for one in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", " ".join(part.split())) if one]


def _is_sentence(text: str) -> bool:
    return len(text.split()) >= 5 and bool(re.fullmatch(r"[A-Z][\w ,;:'\"()/.-]*\.", text))
