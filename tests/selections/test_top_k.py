from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.top_k import PooledTopK, TopK, highest
from tithe.types import IMAGE, TEXT, Tokens


def tokens(seen: list[int], held: int, kind: Tensor | None = None) -> Tokens:
    """Rows of ``seen`` live tokens padded left to ``held``."""
    cols = torch.arange(held).expand(len(seen), 1, held).int()
    return Tokens(cols, cols >= held - torch.tensor(seen)[:, None, None], torch.tensor(seen), kind)


def scores(rows: int, heads: int, held: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, heads, held, generator=torch.Generator().manual_seed(seed))


def test_highest_takes_the_earlier_of_equals() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    assert highest(score, torch.tensor([[2]])).int().tolist() == [[0, 1, 1, 0, 0]]
    assert highest(score, torch.tensor([[0]])).sum() == 0
    assert highest(score, torch.tensor([[9]])).all()


@pytest.mark.parametrize("keep", [0.25, 0.5, 7])
def test_rows_in_a_batch_are_those_alone(keep: float) -> None:
    seen, held = [20, 13, 8], 20
    score = scores(3, 2, held)
    together = TopK(Budget(keep, sink=1, recent=2))(score, tokens(seen, held)).keep
    for row, n in enumerate(seen):
        alone = TopK(Budget(keep, sink=1, recent=2))(score[row : row + 1, :, held - n :], tokens([n], n)).keep
        assert torch.equal(together[row, :, held - n :], alone[0])
        assert not together[row, :, : held - n].any()
        count = min(n, max(3, int(n * keep)) if isinstance(keep, float) else keep)
        assert together[row].sum(-1).tolist() == [count, count]


def test_against_plain_sorting() -> None:
    score, held = scores(1, 3, 30), tokens([30], 30)
    keep = TopK(Budget(11, sink=2, recent=4))(score, held).keep[0]
    for head in range(3):
        best = sorted(range(2, 26), key=lambda c: -float(score[0, head, c]))[:5]
        assert keep[head].nonzero()[:, 0].tolist() == sorted([0, 1, *best, 26, 27, 28, 29])


def test_other_kinds_stay_and_do_not_count() -> None:
    kind = torch.tensor([TEXT] * 5 + [IMAGE] * 10 + [TEXT] * 5)[None, None]
    keep = TopK(Budget(0.3), among=IMAGE)(scores(1, 1, 20), tokens([20], 20, kind)).keep[0, 0]
    assert keep[:5].all() and keep[15:].all()
    assert int(keep[5:15].sum()) == 3


def test_slack_waits_for_each_row() -> None:
    select = TopK(Budget(10), slack=3)
    kept = select(scores(2, 1, 14), tokens([14, 13], 14)).keep
    assert kept.sum(-1).tolist() == [[10], [13]]


def test_drop_cuts_deeper_but_spares_the_protected() -> None:
    assert TopK(Budget(10), drop=0.5)(scores(1, 1, 11), tokens([11], 11)).counts().tolist() == [[5]]
    assert TopK(Budget(10), drop=0.5)(scores(1, 1, 10), tokens([10], 10)).counts().tolist() == [[10]]
    kept = TopK(Budget(10, recent=8), drop=0.5)(scores(1, 1, 11), tokens([11], 11)).keep
    assert kept[0, 0].nonzero()[:, 0].tolist() == list(range(3, 11))


def test_allot_sees_count_and_seen_of_every_row() -> None:
    given = []

    def allot(count: Tensor, seen: Tensor) -> Tensor:
        given.append((count.tolist(), seen.tolist()))
        return count * 3

    kept = TopK(Budget(0.5), allot=allot)(scores(2, 1, 20), tokens([20, 6], 20)).counts()
    assert given == [([10, 3], [20, 6])]
    assert kept.tolist() == [[20], [6]]


def test_pooled_heads_share_one_budget_row_by_row() -> None:
    seen, held = [30, 18], 30
    score = scores(2, 4, held) * torch.tensor([0.5, 1, 2, 4])[None, :, None]
    select = PooledTopK(Budget(0.4, recent=2), floor=0.0)
    together = select(score, tokens(seen, held))
    assert together.counts().sum(-1).tolist() == [4 * 12, 4 * 7]
    assert together.counts()[0].unique().numel() > 1
    for row, n in enumerate(seen):
        alone = select(score[row : row + 1, :, held - n :], tokens([n], n)).keep
        assert torch.equal(together.keep[row, :, held - n :], alone[0])


def test_pooled_keeps_all_where_the_budget_is_all() -> None:
    assert PooledTopK(Budget(1.0, recent=2))(scores(1, 2, 9), tokens([9], 9)).keep.all()
