"""Hallucination on pictures: what is named that is not there.

A wrong answer may still name something of the picture; a hallucinated one names what the picture does not hold.

CHAIR: Rohrbach et al. 2018, arXiv:1809.02156. Authors' code: LisaAnne/Hallucination @ 6e4d33c (BSD-2-Clause).
POPE: Li et al. 2023, arXiv:2305.10355. Authors' code: AoiDragon/POPE @ 08d957b (MIT).
Deviation: a share of nothing (no mention, no yes) is 0 here; the authors' code divides by zero. Where POPE's popular or
adversarial order has nothing left, the authors draw at random from all; here too, from the absent things.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tithe.errors import BadInput, unknown

Negatives = Literal["random", "popular", "adversarial"]
NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)


@dataclass(frozen=True)
class Chair:
    """``instances`` (CHAIRi): share of mentions that name absent things; ``sentences`` (CHAIRs): of texts with one."""

    instances: float
    sentences: float


@dataclass(frozen=True)
class Polled:
    """POPE's figures of yes-or-no answers, each 0 to 1; yes is the positive class."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


@dataclass(frozen=True)
class Poll:
    """One question of POPE: is ``thing`` in the picture of this number; ``there``: the right answer."""

    image: int
    thing: str
    there: bool


def named(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return which of ``names`` a text mentions, in the order of ``names``; whole words, whatever their case."""
    said = f" {_plain(text)} "
    return tuple(name for name in names if f" {_plain(name)} " in said)


def hallucinated(texts: Sequence[str], names: Collection[str], shown: Collection[str]) -> float:
    """Return the share of texts that mention one of ``names`` that is not ``shown``, 0 to 1.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("no answers were given.")
    return sum(any(name not in shown for name in named(text, names)) for text in texts) / len(texts)


def chair(mentions: Sequence[Sequence[str]], shown: Sequence[Collection[str]]) -> Chair:
    """Return CHAIRi and CHAIRs of texts, given what each mentions (with repeats) and what its picture shows.

    Raises:
        ValueError: no texts, or not as many pictures.
    """
    if not mentions or len(mentions) != len(shown):
        raise ValueError(f"{len(mentions)} texts stand against {len(shown)} pictures.")
    wrong = [sum(one not in true for one in said) for said, true in zip(mentions, shown, strict=True)]
    return Chair(_share(sum(wrong), sum(map(len, mentions))), sum(map(bool, wrong)) / len(wrong))


def says_yes(text: str) -> bool:
    """Return POPE's reading of an answer: no, if its first sentence has the word no or not, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in ("No", "no", "not"))


def polled(said: Sequence[bool], true: Sequence[bool]) -> Polled:
    """Return POPE's figures of answers (yes is True) against the truth.

    Raises:
        ValueError: no answers, or not as many truths.
    """
    if not said or len(said) != len(true):
        raise ValueError(f"{len(said)} answers stand against {len(true)} truths.")
    pairs = Counter(zip(said, true, strict=True))
    hits, yes = pairs[True, True], pairs[True, True] + pairs[True, False]
    precision, recall = _share(hits, yes), _share(hits, hits + pairs[False, True])
    return Polled(
        (hits + pairs[False, False]) / len(said),
        precision,
        recall,
        _share(2 * precision * recall, precision + recall),
        yes / len(said),
    )


def polls(
    images: Sequence[Sequence[str]], count: int = 3, negatives: Negatives = "random", seed: int = 0
) -> list[Poll]:
    """Return POPE's questions about pictures, given the things each shows.

    Each of the first ``count`` things of a picture is asked for, and behind each an absent one that this picture was
    not asked for before: any (``random``), the one shown in most pictures (``popular``), or the one shown most often
    together with the thing before it (``adversarial``). Things of equal count keep the order in which they are met.

    Raises:
        BadInput: an unknown kind of negatives, a picture of fewer than ``count`` things, or no thing left to ask for.
    """
    if negatives not in NEGATIVES:
        raise unknown("negatives", negatives, NEGATIVES)
    rng = np.random.Generator(np.random.PCG64(seed))
    popular = Counter(thing for things in images for thing in things)
    together = _together(images)
    found: list[Poll] = []
    for number, things in enumerate(images):
        if len(things) < count:
            raise BadInput(f"count={count}: picture {number} shows {len(things)} things only.")
        asked: set[str] = set()
        for thing in things[:count]:
            left = [other for other in popular if other not in asked and other not in things]
            if not left:
                raise BadInput(f"count={count}: nothing is left to ask for that picture {number} does not show.")
            order = {"random": Counter[str](), "popular": popular, "adversarial": together[thing]}[negatives]
            ranked = [other for other, _ in order.most_common() if other in left]
            absent = ranked[0] if ranked else left[int(rng.integers(len(left)))]
            asked |= {thing, absent}
            found += [Poll(number, thing, True), Poll(number, absent, False)]
    return found


def _together(images: Sequence[Sequence[str]]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for things in images:
        for thing in things:
            counts.setdefault(thing, Counter()).update(other for other in things if other != thing)
    return counts


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w-]+", text.lower()))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
