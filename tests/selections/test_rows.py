from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from methods.vision.contract import kept, tokens

from tithe.budget import Budget
from tithe.errors import Refused
from tithe.selections.rows import Rows
from tithe.types import Tokens

NAN = float("nan")
ORIGIN = torch.tensor(
    [[0, 0, 0], [0, 0, 1], [0, 0, 2], [NAN] * 3, [0, 1, 0], [0, 1, 1], [0, 1, 2], [NAN] * 3, [1, 0, 0], [1, 0, 1]]
)
SCORE = torch.tensor([1.0, 1, 1, 0, 2, 2, 2, 0, 2.5, 2.5])[None, None]


def given() -> Tokens:
    return replace(tokens(10), origin=ORIGIN)


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [(1, [8, 9]), (2, [8, 9]), (4, [8, 9]), (5, [4, 5, 6, 8, 9]), (9, [0, 1, 2, 4, 5, 6, 8, 9]), (10, list(range(10)))],
)
def test_whole_rows_from_the_best_down(keep: int, wanted: list[int]) -> None:
    assert kept(Rows(Budget(keep))(SCORE, given())) == wanted


def test_dead_tokens_do_not_count() -> None:
    live = torch.ones(1, 1, 10, dtype=torch.bool)
    live[..., 8:] = False
    assert kept(Rows(Budget(3))(SCORE, replace(given(), valid=live))) == [4, 5, 6]


def test_no_rows_without_a_raster() -> None:
    with pytest.raises(Refused, match="rows"):
        Rows(Budget(3))(SCORE, tokens(10))
