from __future__ import annotations

import math
import random
from base64 import b64decode

import pytest

from tithe.page.planes import PLACES, TOP, UNSCORED, place_plane, rank_plane, share_plane


def naive_rank(scores: list[float], score: float) -> int:
    below = sum(other < score for other in scores)
    ties = sum(other == score for other in scores)
    return round(TOP * (below + ties / 2) / len(scores))


def unpack(plane: str, packed: bool, n: int) -> list[float]:
    data = b64decode(plane)
    if not packed:
        return [byte / 255 for byte in data]
    return [float(data[at // 8] >> (7 - at % 8) & 1) for at in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_match_counting_and_ignore_the_scale(seed: int) -> None:
    draw = random.Random(seed)
    scores = [draw.choice([draw.paretovariate(0.5), 1.0, -math.inf, math.inf]) for _ in range(300)]
    ranks = list(b64decode(rank_plane(scores)))
    assert ranks == [naive_rank(scores, score) for score in scores]
    assert ranks == list(b64decode(rank_plane([math.atan(score) * 1e-9 for score in scores])))
    assert max(ranks) <= TOP < UNSCORED


def test_a_token_without_a_score_is_no_zero_and_moves_no_other() -> None:
    with_gap = b64decode(rank_plane([3.0, math.nan, 1.0, 2.0]))
    assert with_gap[1] == UNSCORED
    assert with_gap[:1] + with_gap[2:] == b64decode(rank_plane([3.0, 1.0, 2.0]))
    assert set(b64decode(rank_plane([math.nan] * 3))) == {UNSCORED}


def test_equal_scores_claim_no_order() -> None:
    assert set(b64decode(rank_plane([0.0] * 9))) == {TOP // 2}


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_shares_come_back(n: int) -> None:
    draw = random.Random(n)
    bits = [float(draw.random() < 0.3) for _ in range(n)]
    plane, packed = share_plane(bits)
    assert packed
    assert len(b64decode(plane)) == -(-n // 8)
    assert unpack(plane, packed, n) == bits
    shares = [*bits, 0.5]
    plane, packed = share_plane(shares)
    assert not packed
    assert unpack(plane, packed, n + 1) == pytest.approx(shares, abs=0.5 / 255)


def test_kept_by_one_head_of_many_is_neither_dropped_nor_kept() -> None:
    plane, packed = share_plane([1 / 4096, 1 - 1 / 4096, 0, 1])
    low, high, dropped, kept = unpack(plane, packed, 4)
    assert 0 == dropped < low < high < kept == 1


def test_places_take_two_bytes_and_stay_exact() -> None:
    places = [-1, -2, 0, 255, 256, PLACES - 1]
    data = b64decode(place_plane(places))
    read = [low + 256 * high for low, high in zip(data[::2], data[1::2], strict=True)]
    assert [value - 2**16 if value > PLACES - 1 else value for value in read] == places
    with pytest.raises(ValueError, match="beyond"):
        place_plane(range(PLACES + 1))
