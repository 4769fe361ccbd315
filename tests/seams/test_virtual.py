from __future__ import annotations

import pytest
import torch

from tithe.errors import Refused
from tithe.seams.stores import View
from tithe.seams.stream import Stream
from tithe.seams.virtual import columns, expanded
from tithe.types import DEAD


def test_columns_are_found_where_their_leaders_are() -> None:
    """Row 0 holds columns 0, 1 and 4, of which 1 stands for 2 and 3 too; row 1 is padded by one and whole."""
    cols = torch.tensor([[DEAD, DEAD, 0, 1, 4], [DEAD, 1, 2, 3, 4]], dtype=torch.int32)
    leader = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3]])
    found = columns(cols, cols < DEAD, leader, 0, 5)
    assert found.slot[0].tolist() == [2, 3, 3, 3, 4] and found.by[0].tolist() == [0, 0, 1, 2, 0]
    assert found.alive.tolist() == [[True] * 5, [False, True, True, True, True]]
    assert found.slot[1, 1:].tolist() == [1, 2, 3, 4]
    part = columns(cols, cols < DEAD, leader, 3, 5)
    assert part.slot[0].tolist() == [3, 4] and part.by[0].tolist() == [2, 0] and part.cols.tolist() == [3, 4]


def test_outputs_of_a_tokens_columns_are_averaged() -> None:
    cols = torch.tensor([[0, 1, 4]], dtype=torch.int32)
    found = columns(cols, cols < DEAD, torch.tensor([[0, 1, 1, 1]]), 0, 5)
    out = torch.arange(5.0).view(1, 5, 1, 1)
    assert found.averaged(out, 3).flatten().tolist() == [0.0, 2.0, 4.0]


def test_a_leader_that_is_not_held_hides_its_columns() -> None:
    cols = torch.tensor([[0, 4]], dtype=torch.int32)
    found = columns(cols, cols < DEAD, torch.tensor([[0, 1, 1, 1, 4]]), 0, 5)
    assert found.alive[0].tolist() == [True, False, False, False, True]


def test_the_mask_is_causal_by_column_and_left_out_where_causality_says_it_all() -> None:
    live = torch.ones(1, 2, dtype=torch.bool)
    cols = torch.tensor([[0, 2]], dtype=torch.int32)
    stream = Stream(cols, live, 0, 3)
    leader = torch.tensor([[0, 0, 2]])
    view = View(torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4), cols[:, None], live[:, None])
    query = torch.randn(1, 2, 2, 4)
    assert expanded(query, view, stream, leader, lambda x, by: x, masked=False).mask is None
    full = expanded(query, view, stream, leader, lambda x, by: x, masked=True)
    assert full.mask is not None and torch.equal(full.mask[0, 0], torch.ones(3, 3).tril().bool())
    assert torch.equal(full.keys[0, 0], view.keys[0, 0, [0, 0, 1]])


def test_heads_that_hold_different_tokens_are_refused() -> None:
    live = torch.ones(1, 2, 2, dtype=torch.bool)
    view = View(torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4), torch.zeros(1, 2, 2, dtype=torch.int32), live)
    stream = Stream(torch.tensor([[0, 1]], dtype=torch.int32), live[:, 0], 0, 2)
    with pytest.raises(Refused, match="heads hold different tokens"):
        expanded(torch.randn(1, 2, 2, 4), view, stream, torch.tensor([[0, 1]]), lambda x, by: x, masked=False)
