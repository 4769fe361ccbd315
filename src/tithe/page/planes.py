"""Per-token numbers as base64 planes: one byte, or one bit, for each token."""

from __future__ import annotations

import math
from base64 import b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

TOP = 254
UNSCORED = 255


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


def _byte(share: float) -> int:
    return round(share * 255) if share in (0, 1) else min(254, max(1, round(share * 255)))


def _bits(shares: Sequence[float]) -> bytes:
    groups = (shares[start : start + 8] for start in range(0, len(shares), 8))
    return bytes(sum(int(bit) << (7 - at) for at, bit in enumerate(group)) for group in groups)
