"""A part of the budget spread evenly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vision import VLMS, prompt

import tithe
from tithe.budget import Budget
from tithe.selections.hedged import Hedged
from tithe.selections.top_k import TopK
from tithe.types import Tokens


def tokens(n: int) -> Tokens:
    cols = torch.arange(n, dtype=torch.int32)[None, None]
    return Tokens(cols, torch.ones(1, 1, n, dtype=torch.bool), torch.tensor([n]))


@pytest.mark.parametrize("n", [7, 16, 60])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_budget_is_met_and_the_best_stay(n: int, share: float) -> None:
    draw = torch.Generator().manual_seed(n)
    for keep in range(1, n + 1):
        score = torch.rand(1, 1, n, generator=draw)
        kept = Hedged(TopK(Budget(keep)), share)(score, tokens(n)).keep
        assert int(kept.sum()) == keep
        worst = torch.rand(1, 1, n, generator=draw)
        again = Hedged(TopK(Budget(keep)), share)(worst, tokens(n)).keep
        assert int((kept & again).sum()) >= int(keep * share)
        rest = score[0, 0][~kept[0, 0]]
        chosen = score[0, 0][kept[0, 0] & ~again[0, 0]]
        assert not len(chosen) or not len(rest) or float(chosen.min()) >= float(rest.max())


def test_the_spread_part_lies_in_the_middles_of_even_stretches() -> None:
    score = torch.zeros(1, 1, 12)
    score[..., 5] = 1
    kept = Hedged(TopK(Budget(4)), 0.75)(score, tokens(12)).keep
    assert kept[0, 0].nonzero()[:, 0].tolist() == [2, 5, 6, 10]


def test_the_mode() -> None:
    model: Any = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    with torch.no_grad(), tithe.on(model, "fastervlm", keep=8, hedge=0.5, level="kept") as run:
        model(**inputs)
    with torch.no_grad(), tithe.on(model, "fastervlm", keep=8, level="kept") as plain:
        model(**inputs)
    hedged, best = (one.trace.events[0].keep[0, 0] for one in (run, plain))
    assert int(hedged.sum()) == int(best.sum()) == 8
    assert not torch.equal(hedged, best)
    with pytest.raises(tithe.Refused, match=r"hedge=0\.5 is for methods that keep"):
        tithe.method("fastv", keep=0.5, hedge=0.5)
    with pytest.raises(tithe.BadInput, match="hedge=2"):
        tithe.method("fastervlm", hedge=2)
