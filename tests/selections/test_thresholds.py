from __future__ import annotations

import pytest
import torch

from tithe.budget import Budget
from tithe.selections.thresholds import AlikeEnough, AlikeInBatch, OnePerGroup, done, due, most_alike
from tithe.types import IMAGE, TEXT, Tokens


def tokens(rows: int, n: int, cls: bool = True, dead: int = 0) -> Tokens:
    cols = torch.arange(n, dtype=torch.int32).expand(rows, 1, n)
    valid = (torch.arange(n) < n - dead).expand(rows, 1, n)
    kind = torch.where((cols == 0) & cls, TEXT, IMAGE)
    return Tokens(cols, valid, torch.full((rows,), n), kind)


def test_schedules_begin_at_nothing_and_end_at_all() -> None:
    for schedule in ("constant", "decreasing", "increasing"):
        shares = [done(n, 6, schedule) for n in range(7)]
        assert shares[0] == 0 and shares[-1] == pytest.approx(1) and shares == sorted(shares)
        assert done(1, 1, schedule) == 1
    assert done(5, 6, "decreasing") == pytest.approx(1) and done(1, 6, "increasing") == pytest.approx(0)
    assert due(Budget(0.25), torch.tensor([144]), done(3, 6, "constant")).tolist() == [54]


def test_only_image_tokens_alike_enough_join() -> None:
    features = torch.tensor([[[1.0, 0], [1, 0], [1, 0.1], [0, 1], [0.1, 1], [0.6, 0.6], [1, 0]]])
    chosen = AlikeEnough(0.9)(None, tokens(1, 7), features)
    assert chosen.dest is not None
    assert chosen.dest[0, 0].tolist() == [-1, -1, 1, -1, 3, -1, 1]
    assert chosen.keep[0, 0].tolist() == [True, True, False, True, False, True, False]
    assert AlikeEnough(0.9, floor=5)(None, tokens(1, 7), features).keep[0, 0].sum() == 6
    none = AlikeEnough(2.0, share=0.5, ceiling=2)(None, tokens(1, 7), features)
    assert none.keep[0, 0].sum() == 7 - 2


def test_a_picture_with_much_alike_loses_for_one_with_little() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 12, 16, generator=draw)
    features[0] = features[0, :1] + 0.01 * features[0]
    told: list[float] = []
    chosen = AlikeInBatch(Budget(9), 0.0, 1.0, told.append)(None, tokens(2, 12, cls=False), features)
    assert chosen.keep.sum(-1)[:, 0].tolist() == [6, 12] and 0 < told[0] < 0.9


def test_the_next_pair_is_the_threshold() -> None:
    told: list[float] = []
    likeness = torch.tensor([[0.9, 0.2, -torch.inf], [0.5, -0.4, 0.8]])
    assert most_alike(likeness, 2, told.append).tolist() == [[True, False, False], [False, False, True]]
    most_alike(likeness, 5, told.append)
    most_alike(likeness, 99, told.append)
    assert told == [0.5, 0.0, 0.0]
    assert not most_alike(likeness, 0, told.append).any() and len(told) == 3


def test_the_first_live_token_of_a_group_stays() -> None:
    given = tokens(1, 6, cls=False)
    groups = torch.tensor([[[2.0], [0], [2], [1], [0], [0]]])
    chosen = OnePerGroup()(None, given, groups)
    assert chosen.dest is not None
    assert chosen.keep[0, 0].tolist() == [True, True, False, True, False, False]
    assert chosen.dest[0, 0].tolist() == [-1, -1, 0, -1, 1, 1]
    live = torch.tensor([[[False, True, True, True, True, True]]])
    later = OnePerGroup()(None, Tokens(given.cols, live, given.seen, given.kind), groups)
    assert later.keep[0, 0].tolist() == [False, True, True, True, False, False]
