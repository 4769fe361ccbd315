from __future__ import annotations

import pytest
import torch
from methods.vision.contract import tokens
from torch.nn.functional import cosine_similarity

from tithe.budget import Budget
from tithe.errors import ScoreError
from tithe.selections.matching import Bipartite, DominantAndContextual, partners, strided
from tithe.types import IMAGE, TEXT, Tokens, comparable


def block(rows: int, n: int, width: int) -> Tokens:
    """Tokens of a vision block: CLS and n - 1 others of ``width`` that the tower began with."""
    cols = torch.arange(n, dtype=torch.int32).expand(rows, 1, n)
    kind = torch.where(cols == 0, TEXT, IMAGE)
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.full((rows,), width), kind)


def test_partners_by_loops() -> None:
    features = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    free = torch.ones(2, 9, dtype=torch.bool)
    free[:, 0] = False
    free[1, [3, 6]] = False
    features[1, 3] = torch.nan
    likeness, slot = partners(features, free)
    for row in range(2):
        for place in range(9):
            others = [n for n in range(1, 9, 2) if free[row, n]]
            if place % 2 or not free[row, place]:
                assert likeness[row, place] == -torch.inf and slot[row, place] == -1
                continue
            by_loops = [float(cosine_similarity(features[row, place], features[row, n], dim=0)) for n in others]
            assert slot[row, place] == others[by_loops.index(max(by_loops))]
            assert abs(likeness[row, place] - max(by_loops)) < 1e-6


def test_partners_do_not_depend_on_length() -> None:
    draw = torch.Generator().manual_seed(0)
    features, lengths = torch.randn(1, 8, 5, generator=draw), 1 + 9 * torch.rand(1, 8, 1, generator=draw)
    everywhere = torch.ones(1, 8, dtype=torch.bool)
    (likeness, slot), (scaled, same) = (partners(x, everywhere) for x in (features, features * lengths))
    assert torch.allclose(likeness, scaled, atol=1e-5) and torch.equal(slot, same)


@pytest.mark.parametrize("free", [[True], [True, False]])
def test_a_token_alone_has_no_partner(free: list[bool]) -> None:
    likeness, slot = partners(torch.randn(1, len(free), 3), torch.tensor([free]))
    assert (likeness == -torch.inf).all() and (slot == -1).all()


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
    likeness, slot = partners(features, given.among(IMAGE)[:, 0])
    selection = Bipartite(Budget(keep), share)(None, given, features)
    assert selection.counts().tolist() == [[left]] * 2
    assert selection.dest is not None and selection.keep[..., 0].all()
    for row in range(2):
        gone, dest = ~selection.keep[row, 0], selection.dest[row, 0]
        assert torch.equal(dest >= 0, gone) and selection.keep[row, 0][dest[gone]].all()
        order = sorted(range(2, n, 2), key=lambda place: -float(likeness[row, place]))
        assert sorted(gone.nonzero()[:, 0].tolist()) == sorted(order[: n - left])
        assert dest[gone].tolist() == slot[row][gone].tolist()


def test_strided_targets() -> None:
    places = torch.arange(523)
    assert strided(places, 10).tolist() == list(range(0, 469, 52))
    assert strided(torch.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    assert strided(torch.arange(5), 0).tolist() == []


def test_dominant_and_contextual_account_for_every_token() -> None:
    draw = torch.Generator().manual_seed(0)
    score, features = torch.rand(1, 1, 100, generator=draw), torch.randn(1, 100, 6, generator=draw)
    for keep in (1, 2, 7, 50, 99, 100):
        selection = DominantAndContextual(Budget(keep), 0.3)(score, tokens(100), features)
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
    score, features = torch.linspace(1, 0, 20)[None, None], torch.randn(1, 20, 3)
    features[:, 5:9] = torch.nan
    selection = DominantAndContextual(Budget(6), 0.5)(score, given, features)
    assert not selection.keep[..., 5:9].any() and (selection.dest[..., 5:9] == -1).all()  # type: ignore[index]


def test_features_are_one_vector_a_token_finite_where_it_lives() -> None:
    given = tokens(5)
    given.valid[..., 2] = False
    features = torch.randn(1, 5, 3, dtype=torch.bfloat16)
    features[0, 2] = torch.nan
    assert torch.equal(comparable(features, given, "one", "here").nan_to_num(), features.float().nan_to_num())
    for other in (features.mT, features[0], features[:, :4]):
        with pytest.raises(ScoreError, match=r"one: features at here have shape .*, not \[B, n, d\] for \(1, 5\)"):
            comparable(other, given, "one", "here")
    features[0, 3, 1] = torch.inf
    with pytest.raises(ScoreError, match="one: features at here are not finite"):
        comparable(features, given, "one", "here")
