from __future__ import annotations

import pytest
import torch
from methods.context.contract import contract, does_not_compound, generate, kept_sets, padded

from tithe.budget import Budget
from tithe.selections.spaced import Spaced
from tithe.types import Tokens


def test_contract() -> None:
    contract("uniform")
    does_not_compound("uniform")


@pytest.mark.parametrize("count", [1, 2, 7, 12, 39, 40, 55])
@pytest.mark.parametrize("pads", [0, 5])
def test_gaps_differ_by_one_at_most(count: int, pads: int) -> None:
    cols = torch.arange(40 + pads)[None, None].int()
    tokens = Tokens(cols, cols >= pads, torch.tensor([40]))
    keep = Spaced(Budget(count))(cols.float(), tokens).keep[0, 0]
    places = keep.nonzero()[:, 0] - pads
    assert len(places) == min(count, 40)
    assert places[-1] == 39
    gaps = torch.cat([places[:1] + 1, places.diff()])
    assert int(gaps.max() - gaps.min()) <= 1


def test_every_head_and_layer_keeps_the_same() -> None:
    _, events = generate("uniform", padded(), keep=0.25)
    assert kept_sets(events, 0) == [[list(range(3, 40, 4))] * 2] * 3
    assert {len(cols) for heads in kept_sets(events, 1) for cols in heads} == {7}
