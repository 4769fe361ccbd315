from __future__ import annotations

import pytest
import torch
from methods.vision.contract import tokens

from tithe.budget import Budget
from tithe.scores.similarity import partners, with_features
from tithe.selections.matching import Bipartite, DominantAndContextual, strided
from tithe.types import IMAGE, TEXT, Tokens


def block(rows: int, n: int, width: int) -> Tokens:
    """Tokens of a vision block: CLS and n - 1 others of ``width`` that the tower began with."""
    cols = torch.arange(n, dtype=torch.int32).expand(rows, 1, n)
    kind = torch.where(cols == 0, TEXT, IMAGE)
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.full((rows,), width), kind)


@pytest.mark.parametrize(
    ("n", "width", "keep", "share", "left"),
    [
        (17, 17, 16, 1.0, 17),
        (17, 17, 12, 1.0, 13),
        (17, 17, 12, 0.5, 15),
        (13, 17, 8, 1.0, 9),
        (17, 17, 1, 1.0, 9),
        (9, 17, 12, 1.0, 9),
    ],
)
def test_bipartite_joins_the_most_alike_until_the_budget(
    n: int, width: int, keep: int, share: float, left: int
) -> None:
    given = block(2, n, width)
    features = torch.randn(2, n, 6, generator=torch.Generator().manual_seed(0))
    score = partners(features, given.among(IMAGE))
    selection = Bipartite(Budget(keep), share)(score, given)
    assert selection.counts().tolist() == [[left]] * 2
    assert selection.dest is not None and selection.keep[..., 0].all()
    for row in range(2):
        gone, dest = ~selection.keep[row, 0], selection.dest[row, 0]
        assert torch.equal(dest >= 0, gone) and selection.keep[row, 0][dest[gone]].all()
        order = sorted(range(2, n, 2), key=lambda place: float(score[row, 0, place]))
        assert sorted(gone.nonzero()[:, 0].tolist()) == sorted(order[: n - left])
        assert dest[gone].tolist() == score[row, 1][gone].long().tolist()


def test_strided_targets() -> None:
    places = torch.arange(523)
    assert strided(places, 10).tolist() == list(range(0, 469, 52))
    assert strided(torch.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    assert strided(torch.arange(5), 0).tolist() == []


def test_dominant_and_contextual_account_for_every_token() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = with_features(torch.rand(1, 1, 100, generator=draw), torch.randn(1, 100, 6, generator=draw))
    for keep in (1, 2, 7, 50, 99, 100):
        selection = DominantAndContextual(Budget(keep), 0.3)(rows, tokens(100))
        stays, dest = selection.keep[0, 0], selection.dest[0, 0]  # type: ignore[index]
        assert int(stays.sum()) == keep
        assert (dest[stays] == -1).all()
        spread = round(keep * 0.3)
        assert (dest[~stays] >= 0).all() == bool(spread) or keep == 100
        if spread:
            shares = torch.zeros(100).index_add(0, dest[~stays], selection.weight[0, 0][~stays])  # type: ignore[index]
            assert torch.allclose(shares[shares > 0], torch.ones(int((shares > 0).sum())))


def test_a_dead_token_is_neither_kept_nor_joined() -> None:
    given = tokens(20)
    given.valid[..., 5:9] = False
    rows = with_features(torch.linspace(1, 0, 20)[None, None], torch.randn(1, 20, 3))
    selection = DominantAndContextual(Budget(6), 0.5)(rows, given)
    assert not selection.keep[..., 5:9].any() and (selection.dest[..., 5:9] == -1).all()  # type: ignore[index]
