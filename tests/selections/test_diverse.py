from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections import diverse
from tithe.selections.diverse import Diverse, farthest, most_isolated
from tithe.types import IMAGE, TEXT, Tokens


def drawn(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def by_loops(features: Tensor, first: int | None, count: int, by: str) -> list[int]:
    """The greedy choice from all pairs, in the order of choosing."""
    n = len(features)
    apart = [[1 - cosine(features[i], features[j]) for j in range(n)] for i in range(n)]
    if first is None:
        first = max(range(n), key=lambda i: min(apart[i][j] for j in range(n) if j != i))
    chosen = [first]
    while len(chosen) < count:
        left = [i for i in range(n) if i not in chosen]
        fold = min if by == "nearest" else sum
        chosen.append(max(left, key=lambda i: fold([apart[i][j] for j in chosen])))  # type: ignore[operator]
    return chosen


def tokens(kind: Tensor) -> Tokens:
    cols = torch.arange(len(kind), dtype=torch.int32)[None, None]
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([len(kind)]), kind[None, None])


@pytest.mark.parametrize("by", ["nearest", "sum"])
@pytest.mark.parametrize("scored", [True, False])
def test_against_all_pairs(by: diverse.By, scored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diverse, "BLOCK", 5)
    for seed in range(10):
        features = drawn(23, seed)
        score = torch.rand(1, 1, 23, generator=torch.Generator().manual_seed(seed)) if scored else None
        first = int(score[0, 0].argmax()) if score is not None else None
        kept = Diverse(Budget(9), by)(score, tokens(torch.full((23,), IMAGE)), features[None].float()).keep[0, 0]
        assert kept.nonzero()[:, 0].tolist() == sorted(by_loops(features, first, 9, by))


def test_nearest_and_sum_differ() -> None:
    unit = torch.nn.functional.normalize(drawn(40), dim=-1)
    free = torch.ones(40, dtype=torch.bool)
    assert not torch.equal(farthest(unit, free, 0, 12, "nearest"), farthest(unit, free, 0, 12, "sum"))


def test_text_stays_and_does_not_count() -> None:
    kind = torch.tensor([TEXT, *[IMAGE] * 10, TEXT, TEXT])
    kept = Diverse(Budget(0.4))(None, tokens(kind), drawn(13)[None].float()).keep[0, 0]
    assert kept[kind == TEXT].all() and int(kept[kind == IMAGE].sum()) == 4


def test_dead_tokens_are_neither_chosen_nor_compared_with() -> None:
    features = drawn(12)
    features[5] = -features[0]
    free = torch.ones(12, dtype=torch.bool)
    free[5] = False
    unit = torch.nn.functional.normalize(features, dim=-1)
    assert most_isolated(unit, free) == [i for i in range(12) if i != 5][most_isolated(unit[free], free[free])]
    assert not farthest(unit, free, 0, 6)[5]


def test_everything_where_the_budget_allows() -> None:
    given = tokens(torch.full((4,), IMAGE))
    assert Diverse(Budget(9))(None, given, drawn(4)[None].float()).keep.all()
