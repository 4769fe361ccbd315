from __future__ import annotations

import pytest
import torch
from methods.vision.contract import tokens

from tithe.budget import Budget
from tithe.errors import Refused
from tithe.selections.neighbours import AnchorsAndRegisters, around, beside
from tithe.types import Tokens


@pytest.mark.parametrize(
    ("place", "wrapped", "real"),
    [
        (0, {0, 1, 5}, {0, 1, 5}),
        (4, {3, 4, 5, 9, 0}, {3, 4, 9}),
        (7, {2, 6, 7, 8, 12}, {2, 6, 7, 8, 12}),
        (10, {5, 9, 10, 11, 14}, {5, 10, 11}),
        (14, {9, 13, 14}, {9, 13, 14}),
    ],
)
def test_beside(place: int, wrapped: set[int], real: set[int]) -> None:
    mask = torch.zeros(1, 15, dtype=torch.bool)
    mask[0, place] = True
    assert set(beside(mask, (3, 5), wrap=True)[0].nonzero()[:, 0].tolist()) == wrapped
    assert set(beside(mask, (3, 5), wrap=False)[0].nonzero()[:, 0].tolist()) == real


def test_several_at_once_is_the_union() -> None:
    masks = torch.rand(4, 42, generator=torch.Generator().manual_seed(0)) < 0.1
    for wrap in (True, False):
        union = torch.zeros_like(masks)
        for row, place in masks.nonzero().tolist():
            one = torch.zeros(1, 42, dtype=torch.bool)
            one[0, place] = True
            union[row] |= beside(one, (6, 7), wrap)[0]
        assert torch.equal(beside(masks, (6, 7), wrap), union)


def test_without_a_grid_it_is_refused() -> None:
    with pytest.raises(Refused, match="lie on no grid"):
        AnchorsAndRegisters(Budget(3), 0.1, wrap=True)(torch.rand(1, 2, 9), tokens(9))


def test_a_dead_token_is_no_neighbour() -> None:
    given = tokens(9, (3, 3))
    given.valid[..., 1] = False
    score = torch.zeros(1, 2, 9)
    score[0, 0, 4] = 1
    selection = AnchorsAndRegisters(Budget(4), 1.0, wrap=False)(score, given)
    assert selection.keep[0, 0].nonzero()[:, 0].tolist() == [3, 4, 5, 7]


def test_neighbours_in_a_mosaic_stay_within_their_crop() -> None:
    """Two crops of 2 x 3 beside each other, rows interleaved, with a newline token after each row."""
    nan = float("nan")
    origin = [[part, row, col] for row in range(2) for part in range(2) for col in range(3)]
    origin = [*origin[:6], [nan] * 3, *origin[6:], [nan] * 3]
    cols = torch.arange(14, dtype=torch.int32)[None, None]
    given = Tokens(cols, torch.ones(1, 1, 14, dtype=torch.bool), torch.tensor([14]), origin=torch.tensor(origin))
    mask = torch.zeros(1, 14, dtype=torch.bool)
    mask[0, 2] = True
    assert around(mask, given, wrap=False)[0].nonzero()[:, 0].tolist() == [1, 2, 9]
    assert around(mask, given, wrap=True)[0].nonzero()[:, 0].tolist() == [0, 1, 2, 7, 9]
