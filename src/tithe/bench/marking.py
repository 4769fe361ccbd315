"""Marks for what a model wrote: pure functions of text, each 0 (wrong) to 1 (right).

Text is compared whatever its case, in Unicode's composed form (NFC), so that a letter and its accent may be given in
one character or two. Where a script does not put spaces between words (Chinese, Japanese, Thai and their like), each
character counts as a word.

Sources: ``exact`` and ``f1`` are SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250; an empty answer as in SQuAD 2.0,
arXiv:1806.03822), ``all_of`` and ``any_of`` are RULER's ``string_match_all`` and ``string_match_part`` (Hsieh et al.
2024, arXiv:2404.06654), here from 0 to 1. On ASCII text they give the same numbers; beyond it, all of Unicode's
punctuation is dropped, not ASCII's alone.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_APART = re.compile(f"[{_UNSPACED}]")


def exact(given: str, expected: str) -> float:
    """Return 1 where both say the same but for case, punctuation, articles and spaces: SQuAD's exact match."""
    return float(normalised(given) == normalised(expected))


def begins(given: str, expected: str) -> float:
    """Return 1 where ``given`` begins with the words of ``expected``, whatever punctuation stands around them."""
    wanted, said = _words(expected), _words(given)
    return float(bool(wanted) and said[: len(wanted)] == wanted)


def contains(given: str, expected: str) -> float:
    """Return 1 where ``expected`` stands in ``given`` as whole words: 12 is not in 2012, nor 5 in 3.5.

    ``any_of(given, (expected,))`` is the test without regard to words. Nothing is contained where nothing is expected.
    """
    wanted, said = " ".join(_folded(expected).split()), " ".join(_folded(given).split())
    place = said.find(wanted) if wanted else -1
    while place >= 0:
        if not _split(said, place) and not _split(said, place + len(wanted)):
            return 1.0
        place = said.find(wanted, place + 1)
    return 0.0


def f1(given: str, expected: str) -> float:
    """Return the harmonic mean of precision and recall over the words of both, counted: SQuAD's F1.

    Where either holds no word, 1 if neither does and 0 otherwise.
    """
    said, wanted = (_WORDS.findall(normalised(text)) for text in (given, expected))
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def all_of(given: str, wanted: Sequence[str]) -> float:
    """Return the share of the strings ``wanted`` that stand in ``given``, inside words or not; 0 for none wanted."""
    said = _folded(given)
    return sum(_folded(one) in said for one in wanted) / len(wanted) if wanted else 0.0


def any_of(given: str, wanted: Sequence[str]) -> float:
    """Return 1 where any of the strings ``wanted`` stands in ``given``, inside words or not."""
    said = _folded(given)
    return float(any(_folded(one) in said for one in wanted))


def choice(given: str, options: Sequence[str], right: str) -> float:
    """Return 1 where ``given`` names ``right`` of all ``options``: begins with it, or names no other one anywhere.

    Of options that begin alike, or that stand inside one another, the longest counts: ``cat food`` is not ``cat``.
    """
    found = [one for one in options if begins(given, one)] or [one for one in options if contains(given, one)]
    longest = max(found, key=lambda one: (len(_words(one)), len(one)), default=None)
    alone = longest is not None and all(contains(longest, one) or begins(longest, one) for one in found)
    return float(alone and longest == right)


def normalised(text: str) -> str:
    """Return ``text`` as SQuAD compares it: lower case, no punctuation, no English articles, single spaces."""
    bare = "".join(mark for mark in _folded(text) if not _is_punctuation(mark))
    return " ".join(_ARTICLES.sub(" ", bare).split())


def unspaced(mark: str) -> bool:
    """Whether a character is of a script that does not put spaces between words."""
    return _APART.match(mark) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _is_punctuation(mark: str) -> bool:
    return mark in string.punctuation or unicodedata.category(mark).startswith("P")


def _words(text: str) -> list[str]:
    return [word for word in map(_bare, _WORDS.findall(_folded(text))) if word]


def _bare(word: str) -> str:
    inner = [place for place, mark in enumerate(word) if not _is_punctuation(mark)]
    return word[inner[0] : inner[-1] + 1] if inner else ""


def _split(text: str, place: int) -> bool:
    """Whether ``place`` falls between two characters of one word, or of one number with a decimal point."""
    if not 0 < place < len(text):
        return False
    left, right = text[place - 1], text[place]
    if left == "." and place > 1:
        return text[place - 2].isdigit() and right.isdigit()
    if right == "." and place + 1 < len(text):
        return left.isdigit() and text[place + 1].isdigit()
    return _joins(left) and _joins(right)


def _joins(mark: str) -> bool:
    return unicodedata.category(mark)[0] in "LMN" and not unspaced(mark)
