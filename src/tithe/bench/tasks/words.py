"""Counting words: the most common of a list, and the most frequent of a text that follows a power law.

Hsieh et al. 2024, RULER, arXiv:2404.06654; NVIDIA/RULER @ c3f5e3b (Apache-2.0): common words extraction (CWE) and
frequent words extraction (FWE).

Deviations: the order of a list is drawn anew for every case (RULER shuffles all with one seed); words are those of
`lexicon`, of the held-out text and, when these are used up, pairs of them joined by a hyphen (RULER: `wonderwords`,
then a list of 346,000); the terse forms draw from fewer words, and what repeats grows with the length instead.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tithe.bench.tasks.base import NO_HOME
from tithe.bench.tasks.cases import PLAIN_WORDS, Case, Standard, Wording, encoded, expressible, generator
from tithe.bench.tasks.lexicon import ADJECTIVES, NOUNS, VERBS
from tithe.bench.tasks.lm import heldout_text
from tithe.bench.tasks.prose import Query, written

LONG = 4096
LETTERS = 6
TOKENS_A_WORD = 50
DOTS = "..."
ROOM_COMMON, ROOM_FREQUENT = 120, 50
OPENING = "The numbered list below holds some words more often than others. Keep in mind those that come most often.\n"
CODED = "The text below is in code. Count how often each word of it comes. "


def plain_common(
    tokenizer: Any, *, length: int, seed: int, common: int = 3, often: int = 30, seldom: int = 3, most: int = 140
) -> Case:
    """Draw one list of words in the terse form, of exactly `length` tokens.

    `common` words stand in it `often` times each, at most `most` others `seldom` times or, where that is too few or
    too many for the length, more or less often, the ratio staying: never under once. The question is `count words`, the
    answer the common words in the order in which they first appear.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, BOS included.
        seed: Decides everything that is drawn.
        common: Words asked for. often, seldom: how many times they and the others stand in the list, as a ratio.
        most: Other words at most.

    Raises:
        ValueError: a length too short for the common words and as many others, or more words than there are.
    """
    if not 1 <= common <= len(PLAIN_WORDS) - most or often <= seldom or seldom < 1:
        raise ValueError(
            f"need 1 <= common <= {len(PLAIN_WORDS) - most} and 1 <= seldom < often, got {common=}, {often=}, {seldom=}"
        )
    rng = generator(seed)
    names = [PLAIN_WORDS[place] for place in rng.permutation(len(PLAIN_WORDS))]
    head, each, end = _pieces(tokenizer, tuple(names[: common + most]))
    room = length - len(head) - len(end)
    ratio = often / seldom
    few = max(1, -(-room // int(most + ratio * common)))
    many = round(ratio * few)
    rest = room - common * many
    if rest < common * few:
        raise ValueError(f"{common} words {many} times and as many others take more than {room} tokens")
    counts = np.repeat([many, few], [common, rest // few])
    places = np.repeat(np.arange(len(counts)), counts)
    if rest % few:
        places = np.append(places, np.full(rest % few, len(counts)))
    return _listed(names, rng.permutation(places), (head, each, end), "count words", common)


def plain_frequent(
    tokenizer: Any, *, length: int, seed: int, alpha: float = 2.0, asked: int = 3, vocabulary: int | None = None
) -> Case:
    """Draw one text of frequent words in the terse form, of exactly `length` tokens.

    The word of rank k stands in it N k^-alpha / zeta(alpha) times, rounded down; the most frequent is ` ...`, which
    fills up to `length` and is not asked for. The question is `select words`, the answer the words of ranks 2 to
    `asked` + 1, the most frequent first.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, BOS included.
        seed: Decides everything that is drawn.
        alpha: Exponent of the power law. asked: words asked for. vocabulary: words it may use; a fiftieth of `length`
            by default, at least `asked` + 2, and no more than there are.

    Raises:
        ValueError: a length too short for the ranks asked for to differ, or a vocabulary too small or too large.
    """
    size = vocabulary or min(max(length // TOKENS_A_WORD, asked + 2), len(PLAIN_WORDS))
    if not 1 <= asked <= size - 2 or size > len(PLAIN_WORDS) or alpha <= 1:
        raise ValueError(
            f"need 1 <= asked <= vocabulary - 2, vocabulary <= {len(PLAIN_WORDS)} and alpha > 1, "
            f"got {asked=}, vocabulary={size}, {alpha=}"
        )
    rng = generator(seed)
    names = [PLAIN_WORDS[place] for place in rng.permutation(len(PLAIN_WORDS))]
    head, each, end = _pieces(tokenizer, (DOTS, *names[: size - 1]))
    room = length - len(head) - len(end)
    counts = zipf(room, size, alpha)
    if len(set(counts[1 : asked + 2].tolist())) <= asked:
        raise ValueError(f"in {room} words the ranks 2 to {asked + 2} come equally often")
    counts[0] += room - counts.sum()
    places = rng.permutation(np.repeat(np.arange(size), counts))
    return _listed((DOTS, *names), places, (head, each, end), "select words", asked, first=1)


def zipf(total: int, size: int, alpha: float) -> np.ndarray:
    """Return how often each of `size` ranks comes among `total` words, `[size]`: total k^-alpha / zeta(alpha)."""
    ranks = np.arange(1, size + 1)
    return (total * ranks**-alpha / zeta(alpha)).astype(int)


@lru_cache(maxsize=16)
def zeta(alpha: float) -> float:
    """Return Riemann's zeta for alpha > 1 by Euler and Maclaurin's sum, to double precision."""
    cut = 100
    head = sum(k**-alpha for k in range(1, cut))
    tail = cut ** (1 - alpha) / (alpha - 1) + cut**-alpha / 2 + alpha * cut ** (-alpha - 1) / 12
    return head + tail - alpha * (alpha + 1) * (alpha + 2) * cut ** (-alpha - 3) / 720


def written_common(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    common: int = 10,
    often: int | None = None,
    seldom: int | None = None,
    shots: int = 1,
) -> Case:
    """Draw one numbered list of words in natural language, of at most `length` tokens.

    Led by `shots` worked examples: lists of 40 words, 10 and 3 times each; below 4,096 tokens of 20, 3 times and once.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, examples and BOS included.
        seed: Decides everything that is drawn.
        common: Words asked for. often, seldom: how many times they and the others stand in the list; by default 30
            and 3, below 4,096 tokens 6 and 1. shots: worked examples.

    Raises:
        ValueError: a length too short for the common words and one other, or counts that do not differ.
    """
    usual = (30, 3, 40, 10, 3) if length >= LONG else (6, 1, 20, 3, 1)
    many, few = often or usual[0], seldom or usual[1]
    if not (1 <= few < many and 1 <= common < usual[2]):
        raise ValueError(f"need 1 <= seldom < often and 1 <= common < {usual[2]}, got {few}, {many} and {common}")
    rng = generator(seed)
    shown = ""
    for _ in range(shots):
        names = _names(usual[2], common, rng)
        shown += f"{_list(names, common, usual[3], usual[4], rng)}{_answered(common)} {_numbered(names[:common])}\n"
    rest = int(rng.integers(2**62))

    def build(n: int) -> str:
        mine = generator(rest)
        return f"{shown}{_list(_names(n, common, mine), common, many, few, mine)}"

    right = tuple(_names(common + 1, common, generator(rest))[:common])
    query = Query(_asked(common), _lead(common), _numbered(right), right)
    return written(tokenizer, length, build, [query], ROOM_COMMON, least=common + 1)


def written_frequent(
    tokenizer: Any, *, length: int, seed: int, alpha: float = 2.0, asked: int = 3, vocabulary: int | None = None
) -> Case:
    """Draw one text of coded words (six letters each) in natural language, of at most `length` tokens.

    As in `plain_frequent`: a power law over the ranks, dots at rank 1, ranks 2 to `asked` + 1 asked for.

    Raises:
        ValueError: a length too short for the ranks asked for to differ, or a vocabulary too small.
    """
    size = vocabulary or max(length // TOKENS_A_WORD, asked + 2)
    if not 1 <= asked <= size - 2 or alpha <= 1:
        raise ValueError(f"need 1 <= asked <= vocabulary - 2 and alpha > 1, got {asked=}, vocabulary={size}, {alpha=}")
    rng = generator(seed)
    codes: dict[str, None] = {DOTS: None}
    while len(codes) < size:
        codes["".join(rng.choice(list(string.ascii_lowercase), LETTERS))] = None
    names, rest = list(codes), int(rng.integers(2**62))
    least = int(zeta(alpha) / ((asked + 1) ** -alpha - (asked + 2) ** -alpha)) + 1

    def build(n: int) -> str:
        places = generator(rest).permutation(np.repeat(np.arange(size), zipf(n, size, alpha)))
        return f"{CODED}{' '.join(names[place] for place in places.tolist())}\n"

    right = tuple(names[1 : asked + 1])
    query = Query(
        f"Question: Leaving the dots aside, which {asked} words come most often in the coded text? Do not explain.",
        f" Answer: The {asked} words that come most often in the coded text are:",
        " ".join(right),
        right,
    )
    return written(tokenizer, length, build, [query], ROOM_FREQUENT, least=least)


def _names(count: int, common: int, rng: np.random.Generator) -> list[str]:
    """`count` different words, of which the first `common` stand in no other one."""
    pool = vocabulary()
    names = [pool[place] for place in rng.permutation(len(pool)).tolist()]
    pairs = rng.permutation(len(ADJECTIVES) * len(NOUNS))[: max(0, count)].tolist() if count > len(pool) // 2 else []
    names += [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]
    right = names[:common]
    others = [name for name in names[common:] if not any(one in name for one in right)]
    if len(others) < count - common:
        raise ValueError(f"a list of {count} different words cannot be drawn")
    return right + others[: count - common]


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Return the words of numbered lists: everyday ones, then those of the held-out text."""
    found = re.findall(r"\b[a-z]{4,10}\b", heldout_text())
    return tuple(dict.fromkeys((*ADJECTIVES, *NOUNS, *VERBS, *found)))


def _list(names: list[str], common: int, many: int, few: int, rng: np.random.Generator) -> str:
    counts = np.repeat([many, few], [common, len(names) - common])
    places = rng.permutation(np.repeat(np.arange(len(names)), counts))
    return f"{OPENING}{_numbered([names[place] for place in places.tolist()])}\n"


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _asked(common: int) -> str:
    return f"Question: Which {common} words come most often in the list?"


def _lead(common: int) -> str:
    return f" Answer: The {common} words that come most often in the list are:"


def _answered(common: int) -> str:
    return _asked(common) + _lead(common)


Pieces = tuple[list[int], dict[str, int], list[int]]


def _pieces(tokenizer: Any, words: tuple[str, ...]) -> Pieces:
    """BOS, the one token of each word, and a newline."""
    known = _tokens(tokenizer)
    if len({known[word] for word in words}) < len(words):
        raise ValueError("the tokenizer cannot tell the words apart")
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return head, known, encoded(tokenizer, "\n")[-1:]


@lru_cache(maxsize=16)
def _tokens(tokenizer: Any) -> dict[str, int]:
    """The one token that each word of the closed vocabulary takes behind a space."""
    words = (*PLAIN_WORDS, DOTS)
    expressible(tokenizer, tuple(f" {word}" for word in words))
    found = {}
    for word in words:
        ids = encoded(tokenizer, f" {word}")
        if len(ids) != 1:
            raise ValueError(f"the terse form needs {word!r} to be one token; wording='ruler' does without")
        found[word] = ids[0]
    return found


def _listed(
    names: tuple[str, ...] | list[str],
    places: np.ndarray,
    parts: Pieces,
    question: str,
    asked: int,
    first: int = 0,
) -> Case:
    """Words by number as a context; those from number `first` on are asked for."""
    head, tokens, end = parts
    ids = (*head, *(tokens[names[place]] for place in places.tolist()), *end)
    right = np.arange(first, first + asked)
    if not first:
        seen, where = np.unique(places, return_index=True)
        right = right[np.argsort(where[np.searchsorted(seen, right)])]
    wanted = tuple(names[place] for place in right.tolist())
    answer = "".join(f" {word}" for word in wanted)
    return Case(ids, (question,), (answer,), (wanted,), ((),))


@dataclass(frozen=True)
class CommonWords(Standard):
    """The most common words of a list; see `plain_common` and `written_common` for the parameters and both forms.

    None stands for the default of the form: 3 words, 30 to 3 times (terse); 10 words, 30 and 3 times or, below 4,096
    tokens, 6 and 1 (natural language). `shots` is that of the natural-language form.
    """

    common: int | None = None
    often: int | None = None
    seldom: int | None = None
    shots: int = 1

    def draw(self, tokenizer: Any, length: int, seed: int, wording: Wording) -> Case:
        """Return the case of a seed."""
        if wording == "plain":
            often, seldom = self.often or 30, self.seldom or 3
            return plain_common(
                tokenizer, length=length, seed=seed, common=self.common or 3, often=often, seldom=seldom
            )
        return written_common(
            tokenizer,
            length=length,
            seed=seed,
            common=self.common or 10,
            often=self.often,
            seldom=self.seldom,
            shots=self.shots,
        )


@dataclass(frozen=True)
class FrequentWords(Standard):
    """The most frequent words of a text; see `plain_frequent` and `written_frequent` for both forms."""

    alpha: float = 2.0
    asked: int = 3

    def draw(self, tokenizer: Any, length: int, seed: int, wording: Wording) -> Case:
        """Return the case of a seed."""
        make = plain_frequent if wording == "plain" else written_frequent
        return make(tokenizer, length=length, seed=seed, alpha=self.alpha, asked=self.asked)


COMMON_WORDS = CommonWords("common-words", home=NO_HOME)
FREQUENT_WORDS = FrequentWords("frequent-words", home=NO_HOME)
