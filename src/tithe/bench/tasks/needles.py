"""Needles in a haystack: one or many keys, values and queries, after RULER's eight retrieval tasks.

Hsieh et al. 2024, arXiv:2404.06654; NVIDIA/RULER @ c3f5e3b (Apache-2.0). A needle gives a value to a key; a question
names one or more keys, and all their values are wanted. `niah-single` hides one needle, `niah-multikey` four with a key
each, `niah-multivalue` four values of one key; `niah-multiquery` asks for four keys at once. Variants
(`niah-multikey@needles`) name the haystack, or the kind of keys and values, as RULER's numbered ones do:

    single_1..3    niah-single@noise, niah-single, niah-single@uuids (values)
    multikey_1..3  niah-multikey, niah-multikey@needles, niah-multikey@needle-uuids (keys and values)

Deviations: the order of the needles is drawn anew for every case (RULER shuffles all with one seed), no two asked keys
are equal, and the running text is prose out of the held-out standard library, or a file of the user's, where RULER
reads Paul Graham's essays, which are not ours to ship.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tithe.bench.robust import against
from tithe.bench.tasks.base import NO_HOME, Task
from tithe.bench.tasks.cases import (
    HAYSTACKS,
    PLAIN_KEYS,
    PLAIN_VALUES,
    PLAIN_WORDS,
    Case,
    Standard,
    Wording,
    expressible,
    generator,
    weave,
)
from tithe.bench.tasks.lexicon import ADJECTIVES, NOUNS
from tithe.bench.tasks.prose import Query, running, sentences, spread, written

Kind = Literal["words", "numbers", "uuids"]
ROOM = 128
LINE = "The river is wide. The road is long. The barn is red. On they walk. Over and across again."
NEEDLE = re.compile(r"A special (\w+) that belongs to (\S+) is: (\S+)\.")
MANNER = {"words": "word", "numbers": "number", "uuids": "uuid"}


def plain_needles(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    haystack: str = "essay",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    asked: int = 1,
    filler: Sequence[int] | None = None,
) -> Case:
    """Draw one case in the terse form, of exactly `length` tokens.

    A needle is the line `set KEY VALUE VALUE`, a question `get KEY`, its answer ` VALUE VALUE` for each needle of that
    key, in reading order. A question about several keys names them all, and its answer says each before its values.
    No two needles share a key (unless `values` > 1) or a first value.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, BOS included.
        seed: Decides everything that is drawn.
        haystack: `essay` (running text), `noise` (one line repeated) or `needles` (lines of other keys).
        keys: Keys hidden. values: needles of each key. queries: keys in one question. asked: questions, each about
            other keys.
        filler: Token ids of the running text; the held-out standard library by default.

    Raises:
        ValueError: a length too short, or more keys asked for than hidden, or than there are words.
    """
    if not 1 <= queries * asked <= keys < len(PLAIN_KEYS) or not 1 <= keys * values <= len(PLAIN_VALUES):
        raise ValueError(
            f"need 1 <= queries * asked <= keys < {len(PLAIN_KEYS)} and keys * values <= {len(PLAIN_VALUES)}, "
            f"got keys={keys}, values={values}, queries={queries}, asked={asked}"
        )
    expressible(tokenizer, tuple(f" {word}" for word in PLAIN_WORDS))
    rng = generator(seed)
    names = [PLAIN_KEYS[place] for place in rng.permutation(len(PLAIN_KEYS))]
    first = rng.choice(len(PLAIN_VALUES), keys * values, replace=False)
    second = rng.integers(0, len(PLAIN_VALUES), keys * values)
    pairs = [f"{PLAIN_VALUES[one]} {PLAIN_VALUES[two]}" for one, two in zip(first, second, strict=True)]
    owner = rng.permutation(np.repeat(np.arange(keys), values)).tolist()
    lines = [f"set {names[key]} {pair}\n" for key, pair in zip(owner, pairs, strict=True)]

    def others(count: int) -> list[str]:
        unasked = rng.integers(keys, len(names), count)
        one, two = rng.integers(0, len(PLAIN_VALUES), (2, count))
        return [
            f"set {names[key]} {PLAIN_VALUES[a]} {PLAIN_VALUES[b]}\n"
            for key, a, b in zip(unasked, one, two, strict=True)
        ]

    woven = weave(tokenizer, lines, length, rng, haystack, filler, others)
    questions, answers, wanted, spans = [], [], [], []
    for group in rng.permutation(keys)[: queries * asked].reshape(asked, queries).tolist():
        mine = {key: [place for place, other in enumerate(owner) if other == key] for key in group}
        questions.append("get " + " ".join(names[key] for key in group))
        said = [[names[key]] * (queries > 1) + [pairs[place] for place in mine[key]] for key in group]
        answers.append("".join(f" {word}" for words in said for word in words))
        wanted.append(tuple(pairs[place] for key in group for place in mine[key]))
        spans.append(tuple(woven.spans[place] for key in group for place in mine[key]))
    return Case(woven.ids, tuple(questions), tuple(answers), tuple(wanted), tuple(spans))


def written_needles(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    haystack: str = "essay",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    key_kind: Kind = "words",
    value_kind: Kind = "numbers",
    source: str | None = None,
    reworded: bool = False,
) -> Case:
    """Draw one case in natural language, of at most `length` tokens, with one question about `queries` keys.

    Keys and values are words (`amber-anchor`), numbers of seven digits, or UUIDs (version 4). In running text a needle
    stands at one of 40 even depths; in `noise` (one line repeated) and `needles` (other keys) before any line. With
    `reworded`, all needles are said in other words; the rest of a case is what it was.

    Raises:
        ValueError: a length too short, or fewer keys than are asked for.
        BadInput: `source`, the text file to read instead of the held-out prose, cannot be read.
    """
    if not 1 <= queries <= keys or values < 1:
        raise ValueError(f"need 1 <= queries <= keys and values >= 1, got {keys=}, {values=}, {queries=}")
    if haystack not in HAYSTACKS:
        raise ValueError(f"haystack={haystack!r} is not known; possible: {', '.join(HAYSTACKS)}")
    rng = generator(seed)
    names = _different(key_kind, keys, rng)
    held = _different(value_kind, keys * values, rng)
    owner = np.repeat(np.arange(keys), values)
    hidden = [_needle(names[key], value, value_kind) for key, value in zip(owner, held, strict=True)]
    asked = rng.permutation(keys)[:queries].tolist()
    order = [hidden[place] for place in rng.permutation(len(hidden))]
    rest = int(rng.integers(2**62))
    say = _reworded if reworded else str
    wanted = tuple(held[place] for key in asked for place in np.flatnonzero(owner == key))
    evidence = tuple(say(hidden[place]) for key in asked for place in np.flatnonzero(owner == key))
    number = MANNER[value_kind] + "s" * (len(wanted) > 1)
    verb = "are" if len(wanted) > 1 else "is"
    named = " and ".join(filter(None, (", ".join(names[key] for key in asked[:-1]), names[asked[-1]])))
    opening = f"The text below hides special {MANNER[value_kind]}s. Keep them in mind: you will be asked for them.\n"

    def build(n: int) -> str:
        return say(f"{opening}{_hay(n, order, haystack, names, (key_kind, value_kind), source, generator(rest))}\n")

    query = Query(
        f"Which special {number} of {named} {verb} given in the text?",
        f" The special {number} of {named} given in the text {verb}",
        ", ".join(wanted),
        wanted,
        evidence,
    )
    return written(tokenizer, length, build, [query], ROOM)


def _hay(
    n: int,
    needles: Sequence[str],
    haystack: str,
    taken: Sequence[str],
    kinds: tuple[Kind, Kind],
    source: str | None,
    rng: np.random.Generator,
) -> str:
    """A haystack of `n` words (running text) or lines with the needles in it."""
    if haystack == "essay":
        first, depths = int(rng.integers(len(sentences(source)))), spread(len(needles), rng)
        parts, joint = running(source, n, first), " "
        cuts = [int(len(parts) * depth) for depth in depths]
    else:
        depths, joint = rng.random(len(needles)), "\n"
        cuts = sorted(int(n * depth) for depth in depths)
        parts = [LINE] * n if haystack == "noise" else [_other(taken, kinds, rng) for _ in range(n)]
    for cut, needle in sorted(zip(cuts, needles, strict=True), key=lambda pair: -pair[0]):
        parts.insert(cut, needle)
    return joint.join(parts)


def _other(taken: Sequence[str], kinds: tuple[Kind, Kind], rng: np.random.Generator) -> str:
    key = next(name for name in iter(lambda: _any(kinds[0], rng), None) if name not in taken)
    return _needle(key, _any(kinds[1], rng), kinds[1])


def _needle(key: str, value: str, kind: Kind) -> str:
    return f"A special {MANNER[kind]} that belongs to {key} is: {value}."


def _reworded(text: str) -> str:
    return NEEDLE.sub(r"Remember \2: should anybody ask, the special \1 that goes with it was set to \3.", text)


def _any(kind: Kind, rng: np.random.Generator) -> str:
    if kind == "numbers":
        return str(rng.integers(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]}-{NOUNS[rng.integers(len(NOUNS))]}"


def _different(kind: Kind, count: int, rng: np.random.Generator) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[_any(kind, rng)] = None
    return list(found)


@dataclass(frozen=True)
class Needles(Standard):
    """Needles in a haystack; see `plain_needles` and `written_needles` for the parameters and both forms.

    `key_kind`, `value_kind`, `source` and `reworded` are those of the natural-language form: the terse one has words
    only, and one way to say a thing.
    """

    haystack: str = "essay"
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    source: str | None = None
    reworded: bool = False

    def draw(self, tokenizer: Any, length: int, seed: int, wording: Wording) -> Case:
        """Return the case of a seed."""
        if wording == "plain" and self.reworded:
            raise ValueError("the terse form knows one way to say a thing; other words need natural language")
        if wording == "plain":
            return plain_needles(
                tokenizer,
                length=length,
                seed=seed,
                haystack=self.haystack,
                keys=self.keys,
                values=self.values,
                queries=self.queries,
            )
        return written_needles(
            tokenizer,
            length=length,
            seed=seed,
            haystack=self.haystack,
            keys=self.keys,
            values=self.values,
            queries=self.queries,
            key_kind=self.key_kind,
            value_kind=self.value_kind,
            source=self.source,
            reworded=self.reworded,
        )

    def variant(self, name: str) -> Task | None:
        """Return the task with another haystack, other kinds of keys and values, or other words.

        `robust`: both wordings at once, and how far an answer depends on them.
        """
        if name == "robust":
            return against(self, "paraphrased")
        if name not in VARIANTS:
            return super().variant(name)
        changed: dict[str, Any] = {"name": f"{self.name}@{name}", **VARIANTS[name]}
        return replace(self, **changed)


VARIANTS: dict[str, dict[str, Any]] = {
    "noise": {"haystack": "noise"},
    "essay": {"haystack": "essay"},
    "needles": {"haystack": "needles", "keys": 1},
    "paraphrased": {"reworded": True},
    "uuids": {"value_kind": "uuids"},
    "needle-uuids": {"haystack": "needles", "keys": 1, "key_kind": "uuids", "value_kind": "uuids"},
}
SINGLE = Needles("niah-single")
MULTI_KEY = Needles("niah-multikey", keys=4)
MULTI_VALUE = Needles("niah-multivalue", values=4, home=NO_HOME)
MULTI_QUERY = Needles("niah-multiquery", keys=4, queries=4)
