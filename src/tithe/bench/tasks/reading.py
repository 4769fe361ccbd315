"""Question answering: one passage that holds the answer among passages that do not.

After RULER's two question-answering tasks (Hsieh et al. 2024, arXiv:2404.06654; NVIDIA/RULER @ c3f5e3b, Apache-2.0),
which hide the paragraph of a SQuAD or HotpotQA question among others. Those data are not ours to ship: `source` reads a
file in either format. Without one the questions are made from the held-out standard library, mechanically: a line of a
passage is quoted without its last word, which stands nowhere else in the context. That asks for reading, not for
understanding: a model that finds the line and copies is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tithe.bench.prompt import read_text
from tithe.bench.tasks.base import NO_HOME
from tithe.bench.tasks.cases import AnyOf, Case, Span, Wording, encoded, generator
from tithe.bench.tasks.lm import heldout_ids, heldout_text, line_breaks
from tithe.bench.tasks.prose import Query, written
from tithe.errors import BadInput

ROOM = 32
PASSAGE = 64
LINES = 8
LETTERS = 3
TRIES = 32
OPENING = "Read the documents below; a question about them follows.\n\n"


def plain_reading(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    passage: int = PASSAGE,
    asked: int = 1,
    filler: Sequence[int] | None = None,
) -> Case:
    """Draw one case in the terse form, of exactly `length` tokens.

    Passages of whole lines, from anywhere in the text; a question is `line BEGINNING`, a line without its last word and
    its indentation, its answer that word with the marks around it; without them it is right as well. Beginning and word
    stand once in the context.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, BOS included.
        seed: Decides everything that is drawn.
        passage: Tokens of a passage at least. asked: questions, about different lines.
        filler: Token ids of the text; the held-out standard library by default.

    Raises:
        ValueError: a length or a text too short, or too few lines that could be asked for.
    """
    rng = generator(seed)
    source = np.asarray(heldout_ids(tokenizer) if filler is None else filler)
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - len(head)
    if room < passage or len(source) < 4 * passage:
        raise ValueError(f"passages of {passage} tokens do not fit {room} tokens, drawn from {len(source)}")
    for _ in range(TRIES):
        body = _pages_of(tokenizer, source, passage, room, rng)
        if len(chosen := _gaps(tokenizer, body, rng)) >= asked:
            break
    else:
        raise ValueError(f"too few lines end in a word of their own: {asked} are asked for")
    chosen = chosen[:asked]
    return Case(
        ids=(*head, *body.tolist()),
        questions=tuple(f"line {beginning}" for beginning, _, _, _ in chosen),
        answers=tuple(f" {end}" for _, end, _, _ in chosen),
        wanted=tuple((word,) for _, _, word, _ in chosen),
        spans=tuple(((start + len(head), stop + len(head)),) for *_, (start, stop) in chosen),
    )


def _pages_of(tokenizer: Any, source: np.ndarray, least: int, room: int, rng: np.random.Generator) -> np.ndarray:
    """`room` tokens of passages, a newline last."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < room:
        parts.append(_passage(tokenizer, source, least, rng))
    body = np.concatenate(parts)[:room]
    body[-1] = encoded(tokenizer, "\n")[-1]
    return body


def _gaps(tokenizer: Any, body: np.ndarray, rng: np.random.Generator) -> list[tuple[str, str, str, Span]]:
    """The lines of `body` that can be asked for, in random order; the last one may be cut and is not."""
    edges = np.append(0, line_breaks(tokenizer, body)).tolist()
    spans = list(pairwise(edges))
    texts = tokenizer.batch_decode([body[start:stop].tolist() for start, stop in spans])
    whole = "".join(texts)
    gaps = ((_gap(texts[place], whole), spans[place]) for place in rng.permutation(len(texts) - 1).tolist())
    return [(*gap, span) for gap, span in gaps if gap]


def _passage(tokenizer: Any, source: np.ndarray, least: int, rng: np.random.Generator) -> np.ndarray:
    """Whole lines of `least` tokens or somewhat more, from anywhere in `source`."""
    while True:
        start = int(rng.integers(0, len(source) - 3 * least))
        window = source[start : start + 3 * least]
        breaks = line_breaks(tokenizer, window)
        if len(breaks) and len(after := breaks[breaks >= breaks[0] + least]):
            return window[breaks[0] : after[0]]


def _gap(line: str, whole: str) -> tuple[str, str, str] | None:
    """The beginning of a line, its last word with and without marks around it, where all stand once in `whole`."""
    beginning, _, end = line.strip().rpartition(" ")
    found = re.fullmatch(rf"\W*(\w{{{LETTERS},}})\W*", end, re.ASCII)
    if not found or len(beginning.split()) < 2 or whole.count(found[1]) != 1 or whole.count(beginning) != 1:
        return None
    return beginning, end, found[1]


@dataclass(frozen=True)
class Questioned:
    """A question, its right answers, the documents they follow from, and those of the same article, by number."""

    question: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Library:
    """All documents of a file, and all questions about them."""

    documents: tuple[str, ...]
    questions: tuple[Questioned, ...]


@lru_cache(maxsize=4)
def library(source: str) -> Library:
    """Return the questions of a file in the format of SQuAD (1.1 or 2.0) or of HotpotQA (distractor setting).

    Raises:
        BadInput: the file cannot be read, is neither, or asks nothing that can be answered.
    """
    try:
        data = json.loads(read_text(Path(source)))
        found = _hotpot(data) if isinstance(data, list) else _squad(data["data"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"source={source!r} is neither SQuAD's nor HotpotQA's JSON: {error!r}") from error
    if not found.questions:
        raise BadInput(f"source={source!r} asks no question that has an answer.")
    return found


def _squad(articles: Any) -> Library:
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    number = {text: place for place, text in enumerate(documents)}
    asked = []
    for article in articles:
        own = list(dict.fromkeys(number[part["context"]] for part in article["paragraphs"]))
        for part in article["paragraphs"]:
            here = number[part["context"]]
            related = tuple(place for place in own if place != here)
            for one in part["qas"]:
                if not one.get("is_impossible", False) and one["answers"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in one["answers"]))
                    asked.append(Questioned(one["question"], answers, (here,), related))
    return Library(tuple(documents), tuple(asked))


def _hotpot(data: Any) -> Library:
    named = [[f"{title}\n{''.join(parts)}" for title, parts in one["context"]] for one in data]
    documents = sorted({text for texts in named for text in texts})
    number = {text: place for place, text in enumerate(documents)}
    asked = [
        Questioned(one["question"], (one["answer"],), tuple(dict.fromkeys(number[text] for text in texts)))
        for one, texts in zip(data, named, strict=True)
    ]
    return Library(tuple(documents), tuple(asked))


def written_reading(tokenizer: Any, *, length: int, seed: int, source: str | None = None) -> Case:
    """Draw one case in natural language, of at most `length` tokens.

    Numbered documents in random order: those that a question needs, then others of the same article, then any others,
    as RULER takes them; repeated where a length needs more than there are. Any of the right answers counts.

    Raises:
        ValueError: a length too short for the documents that are needed.
        BadInput: `source` cannot be read.
    """
    rng = generator(seed)
    if source is None:
        needed, others, text, answers, evidence = _quoted(rng)
    else:
        books = library(source)
        one = books.questions[rng.integers(len(books.questions))]
        unrelated = sorted(set(range(len(books.documents))) - {*one.needed, *one.related})
        numbers = [*rng.permutation(one.related).astype(int), *rng.permutation(unrelated).astype(int)]
        needed, others = ([books.documents[place] for place in places] for places in (one.needed, numbers))
        text, answers = one.question, one.answers
        evidence = tuple(document for document in needed if any(answer in document for answer in answers))
    depths = rng.random(len(needed))

    def build(n: int) -> str:
        extra = n - len(needed)
        documents = [others[place % len(others)] for place in range(extra)] if others else []
        for depth, document in sorted(zip(depths, needed, strict=True)):
            documents.insert(int(depth * (len(documents) + 1)), document)
        return OPENING + "".join(f"Document {place}:\n{text}\n\n" for place, text in enumerate(documents, 1))

    query = Query(
        f"Answer with nothing but the answer, as the documents give it.\nQuestion: {text}",
        " Answer:",
        answers[0],
        answers,
        evidence[:1],
    )
    return written(tokenizer, length, build, [query], ROOM, least=len(needed))


def _quoted(rng: np.random.Generator) -> tuple[list[str], list[str], str, tuple[str, ...], tuple[str, ...]]:
    """A document, all others in random order, a question about a line of the first, its answer, and the line."""
    pages, whole = _pages(), heldout_text()
    while True:
        order = rng.permutation(len(pages))
        lines = pages[order[0]].split("\n")
        for place in rng.permutation(len(lines)).tolist():
            if pair := _gap(lines[place], whole):
                text = f'Which word ends the line that begins with "{pair[0]}"?'
                return [pages[order[0]]], [pages[page] for page in order[1:]], text, (pair[2],), (lines[place],)


@lru_cache(maxsize=1)
def _pages() -> tuple[str, ...]:
    """The held-out text in pages of a few lines."""
    lines = heldout_text().rstrip("\n").split("\n")
    return tuple("\n".join(lines[start : start + LINES]) for start in range(0, len(lines), LINES))


@dataclass(frozen=True)
class Reading(AnyOf):
    """Question answering; see `plain_reading` and `written_reading` for both forms.

    `source` is a file in SQuAD's or HotpotQA's format; its questions have the natural-language form only.
    """

    source: str | None = None

    def draw(self, tokenizer: Any, length: int, seed: int, wording: Wording) -> Case:
        """Return the case of a seed."""
        if wording == "plain" and self.source is None:
            return plain_reading(tokenizer, length=length, seed=seed)
        return written_reading(tokenizer, length=length, seed=seed, source=self.source)


READING = Reading("qa", home=NO_HOME)
