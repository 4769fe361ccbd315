"""A part of the budget chosen for diversity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vision import VLMS, prompt
from torch import Tensor

import tithe
from tithe.budget import Budget
from tithe.selections.hedged import Hedged
from tithe.selections.top_k import TopK
from tithe.types import Tokens


def tokens(n: int) -> Tokens:
    cols = torch.arange(n, dtype=torch.int32)[None, None]
    return Tokens(cols, torch.ones(1, 1, n, dtype=torch.bool), torch.tensor([n]))


def naive(score: Tensor, features: Tensor, keep: int, share: float) -> set[int]:
    """Written from the definition: the best, then one by one the one whose nearest chosen one is farthest."""
    order = sorted(range(len(score)), key=lambda i: (-float(score[i]), i))
    chosen = order[: max(keep - int(keep * share), 1)]
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    while len(chosen) < keep:
        left = [i for i in range(len(score)) if i not in chosen]
        chosen.append(min(left, key=lambda i: max(float(unit[i] @ unit[j]) for j in chosen)))
    return set(chosen)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_best_and_those_unlike_them(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    for n in (5, 16, 24):
        for keep in (1, n // 2, n - 1, n):
            score, features = torch.rand(1, 1, n, generator=draw), torch.randn(1, n, 6, generator=draw)
            kept = Hedged(TopK(Budget(keep)), share)(score, tokens(n), features).keep[0, 0]
            assert set(kept.nonzero()[:, 0].tolist()) == naive(score[0, 0], features[0], keep, share)


def test_the_mode() -> None:
    model: Any = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    with torch.no_grad(), tithe.on(model, "fastervlm", keep=8, hedge=0.5, level="kept") as run:
        model(**inputs)
    with torch.no_grad(), tithe.on(model, "fastervlm", keep=8, level="kept") as plain:
        model(**inputs)
    hedged, best = (one.trace.events[0].keep[0, 0] for one in (run, plain))
    assert int(hedged.sum()) == int(best.sum()) == 8
    assert 4 <= int((hedged & best).sum()) < 8
    with pytest.raises(tithe.Refused, match=r"hedge=0\.5 is for methods that keep"):
        tithe.method("fastv", keep=0.5, hedge=0.5)
    with pytest.raises(tithe.BadInput, match="hedge=2"):
        tithe.method("fastervlm", hedge=2)
