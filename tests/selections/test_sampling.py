from __future__ import annotations

import pytest
import torch

from tithe.selections.sampling import InverseTransform, drawn
from tithe.types import IMAGE, TEXT, Tokens


def naive(score: list[float], points: int) -> set[int]:
    order = sorted(range(len(score)), key=score.__getitem__)
    total = [sum(score[place] for place in order[: n + 1]) for n in range(len(order))]
    stands = [(one - total[0]) / (total[-1] - total[0]) for one in total]
    start = min(one for one in stands if one > 0)
    targets = [start + (1 - start) * n / max(1, points - 1) for n in range(points)] if points > 1 else [1.0]
    return {order[min(range(len(order)), key=lambda n: abs(stands[n] - y))] for y in targets}


@pytest.mark.parametrize("points", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("power", [1, 8])
def test_against_loops(points: int, power: int) -> None:
    score = torch.rand(3, 60, generator=torch.Generator().manual_seed(points), dtype=torch.float64) ** power
    got = drawn(score, torch.ones(3, 60, dtype=torch.bool), points)
    for row in range(3):
        assert set(got[row].nonzero()[:, 0].tolist()) == naive(score[row].tolist(), points)


def test_peaked_scores_keep_fewer() -> None:
    every = torch.ones(1, 50, dtype=torch.bool)
    flat, peaked = torch.rand(1, 50) + 9, torch.rand(1, 50) ** 40
    assert drawn(flat, every, 50).sum() > 40 > 15 > drawn(peaked, every, 50).sum()


def test_dead_tokens_change_nothing() -> None:
    score = torch.rand(1, 30)
    alone = drawn(score, torch.ones(1, 30, dtype=torch.bool), 12)
    padded = torch.cat([score, torch.rand(1, 6)], 1)
    live = torch.arange(36)[None] < 30
    assert torch.equal(drawn(padded, live, 12)[:, :30], alone) and not drawn(padded, live, 12)[:, 30:].any()


def test_a_single_or_equal_tokens_stay() -> None:
    one = torch.tensor([[False, True, False]])
    assert torch.equal(drawn(torch.rand(1, 3), one, 4), one)
    assert drawn(torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool), 50).tolist() == [[False, True, True, True, True]]


def test_points_are_a_share_of_the_patches_seen_and_cls_stays() -> None:
    cols = torch.arange(21, dtype=torch.int32)[None, None]
    given = Tokens(
        cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([41]), torch.where(cols == 0, TEXT, IMAGE)
    )
    score = torch.rand(1, 1, 21)
    for share, count in ((0.25, 10), (1.0, 40), (1e-9, 1)):
        assert torch.equal(InverseTransform(share)(score, given).keep, InverseTransform(count)(score, given).keep)
    assert InverseTransform(1)(score, given).keep[0, 0].tolist().count(True) == 2
    assert InverseTransform(1)(score, given).keep[0, 0, 0]
