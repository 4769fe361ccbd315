"""Per-token numbers as base64 planes: one byte, or one bit, for each token."""

from __future__ import annotations

import math
from base64 import b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

TOP = 254
UNSCORED = 255
PLACES = 2**16 - 2


def rank_plane(scores: Sequence[float]) -> str:
    """Scores of any scale as mid-ranks, one byte each: `TOP` is the share of scores below, ties counted half.

    Ranks, because attention mass is so heavy-tailed that one sink would make every other token look like zero.
    A NaN is a token without a score and becomes `UNSCORED`; infinities rank as what they are.
    """
    ordered = sorted(score for score in scores if not math.isnan(score))
    return b64encode(bytes(_rank(score, ordered) for score in scores)).decode()


def _rank(score: float, ordered: Sequence[float]) -> int:
    if math.isnan(score):
        return UNSCORED
    twice = bisect_left(ordered, score) + bisect_right(ordered, score)
    return round(TOP * twice / (2 * len(ordered)))


def share_plane(shares: Sequence[float]) -> tuple[str, bool]:
    """Shares in 0..1 and whether they are packed as bits (first token in the highest bit) or as bytes of 255.

    A share that is neither 0 nor 1 never rounds to one of them: "dropped" and "kept" stay exact.
    """
    if all(share in (0, 1) for share in shares):
        return b64encode(_bits(shares)).decode(), True
    return b64encode(bytes(_byte(share) for share in shares)).decode(), False


def place_plane(places: Sequence[int]) -> str:
    """Whole numbers from -2 up, two bytes each, the low one first; those below 0 count down from 2^16.

    Raises:
        ValueError: more of them than two bytes can count.
    """
    if len(places) > PLACES:
        raise ValueError(f"places: {len(places)} given, beyond {PLACES}")
    return b64encode(b"".join((place % 2**16).to_bytes(2, "little") for place in places)).decode()


def _byte(share: float) -> int:
    return round(share * 255) if share in (0, 1) else min(254, max(1, round(share * 255)))


def _bits(shares: Sequence[float]) -> bytes:
    groups = (shares[start : start + 8] for start in range(0, len(shares), 8))
    return bytes(sum(int(bit) << (7 - at) for at, bit in enumerate(group)) for group in groups)
