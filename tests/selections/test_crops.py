from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from methods.vision.contract import tokens
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.crops import ByDensity, ThumbnailFirst
from tithe.types import Tokens

PARTS = torch.tensor([0.0] * 4 + [1.0] * 4 + [2.0] * 4 + [torch.nan])
SCORE = torch.rand(13, generator=torch.Generator().manual_seed(0))


def given(allot: list[float] | None = None) -> Tokens:
    origin = torch.stack([PARTS, PARTS * 0, PARTS * 0], -1)
    return replace(tokens(13), origin=origin, allot=None if allot is None else torch.tensor(allot))


def split(score: Tensor) -> Tensor:
    whole = torch.arange(13) < 4
    return torch.stack([score.masked_fill(~whole, -torch.inf), score.masked_fill(whole, -torch.inf)])[None]


def counts(keep: Tensor) -> list[int]:
    return [int(keep[0, 0, part == PARTS].sum()) for part in range(3)] + [int(keep[0, 0, 12])]


@pytest.mark.parametrize(
    ("keep", "alpha", "allot", "wanted"),
    [
        (8, 0.5, [0.0, 0.5, 0.5], [4, 2, 2, 0]),
        (8, 0.5, [0.0, 0.9, 0.1], [4, 3, 0, 0]),
        (8, 0.25, [0.0, 1.0, 0.0], [2, 4, 0, 0]),
        (12, 0.5, [0.0, 0.5, 0.5], [4, 4, 4, 0]),
        (13, 0.5, [0.0, 1.0, 0.0], [4, 4, 4, 1]),
        (1, 0.5, [0.0, 0.5, 0.5], [0, 0, 0, 0]),
    ],
)
def test_thumbnail_first(keep: int, alpha: float, allot: list[float], wanted: list[int]) -> None:
    found = ThumbnailFirst(Budget(keep), alpha)(split(SCORE), given(allot)).keep
    if sum(wanted):
        assert counts(found) == wanted
        for part, count in enumerate(wanted[:3]):
            own = (part == PARTS).nonzero()[:, 0]
            best = own[SCORE[own].argsort(descending=True)[:count]]
            assert bool(found[0, 0, best].all())
    else:
        assert found[0, 0].nonzero()[:, 0].tolist() == [int(SCORE.argmax())], "a token stays where all round to none"


def test_density_rounds_down_in_each_part_and_leaves_tokens_of_none() -> None:
    density = torch.tensor([1.0] * 4 + [1.5] * 4 + [0.5] * 4 + [1.0])
    found = ByDensity(Budget(0.5))(torch.stack([SCORE, density])[None], given()).keep
    assert counts(found) == [2, 3, 1, 1]
    full = ByDensity(Budget(0.9))(torch.stack([SCORE, density])[None], given()).keep
    assert counts(full) == [3, 4, 1, 1]
    assert ByDensity(Budget(1.0))(torch.stack([SCORE, density * 0])[None], given()).keep.all()


def test_density_keeps_one_token_at_least() -> None:
    found = ByDensity(Budget(1e-6))(torch.stack([SCORE, torch.ones(13)])[None], given()).keep
    assert counts(found)[:3].count(1) == 1 and sum(counts(found)[:3]) == 1
