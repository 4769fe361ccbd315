"""The budget of a picture shared out over its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vision import VLMS, prompt

import tithe
from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.per_part import PerPart, shared_out
from tithe.types import Tokens


def tokens(parts: list[int], allot: list[float] | None = None) -> Tokens:
    n = len(parts)
    part = torch.tensor([float(p) if p >= 0 else torch.nan for p in parts])
    origin = torch.stack([part, torch.zeros(n), torch.zeros(n)], -1)
    shares = None if allot is None else torch.tensor(allot)
    cols = torch.arange(n, dtype=torch.int32)[None, None]
    return Tokens(cols, torch.ones(1, 1, n, dtype=torch.bool), torch.tensor([n]), origin=origin, allot=shares)


def test_whole_tokens_go_by_the_largest_remainder() -> None:
    counts = shared_out(10, torch.tensor([0.5, 0.27, 0.23]), torch.tensor([10, 10, 10]))
    assert counts.tolist() == [5, 3, 2]


def test_what_a_part_cannot_take_goes_to_the_others_by_their_shares() -> None:
    counts = shared_out(12, torch.tensor([0.8, 0.15, 0.05]), torch.tensor([4, 20, 20]))
    assert counts.tolist() == [4, 6, 2]


@pytest.mark.parametrize(
    ("floor", "ceiling", "expected"),
    [(2, None, [6, 2, 2]), (0.3, None, [4, 3, 3]), (0, 5, [5, 3, 2]), (2, 0.6, [6, 2, 2]), (4, None, [4, 4, 4])],
)
def test_a_floor_and_a_ceiling_hold(floor: int | float, ceiling: int | float | None, expected: list[int]) -> None:
    counts = shared_out(10, torch.tensor([0.8, 0.12, 0.08]), torch.tensor([10, 10, 10]), floor, ceiling)
    assert counts.tolist() == expected


def test_every_budget_is_met_exactly_whatever_the_shares() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        count = int(torch.randint(1, 7, (1,), generator=draw))
        sizes = torch.randint(1, 12, (count,), generator=draw)
        wanted = int(torch.randint(1, int(sizes.sum()) + 1, (1,), generator=draw))
        shares = torch.rand(count, generator=draw)
        found = shared_out(wanted, shares / shares.sum(), sizes)
        assert int(found.sum()) == wanted
        assert bool((found <= sizes).all())


def test_the_best_of_each_part_stay_and_newlines_go() -> None:
    score = torch.tensor([[[0.1, 0.9, 0.2, 0.8, 0.7, 0.6, 9.0]]])
    chosen = PerPart(Budget(3))(score, tokens([0, 0, 0, 1, 1, 1, -1], [0.4, 0.6]))
    assert chosen.keep[0, 0].tolist() == [False, True, False, True, True, False, False]


def test_everything_stays_where_the_budget_allows_it() -> None:
    chosen = PerPart(Budget(1.0))(torch.zeros(1, 1, 4), tokens([0, 0, 1, -1]))
    assert bool(chosen.keep.all())


@pytest.mark.parametrize("bound", [-1, 1.5, True])
def test_a_bound_out_of_range_is_refused(bound: int | float) -> None:
    with pytest.raises(BadInput, match="floor="):
        PerPart(Budget(0.5), floor=bound)


def test_pooled_parts_compete_within_their_bounds() -> None:
    score = torch.tensor([[[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]]])
    given = tokens([0, 0, 0, 0, 1, 1, 1, 1])
    free = PerPart(Budget(4), pooled=True)(score, given).keep[0, 0]
    assert free.nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    floored = PerPart(Budget(4), floor=1, pooled=True)(score, given).keep[0, 0]
    assert floored.nonzero()[:, 0].tolist() == [0, 1, 2, 7]
    capped = PerPart(Budget(4), ceiling=0.5, pooled=True)(score, given).keep[0, 0]
    assert capped.nonzero()[:, 0].tolist() == [0, 1, 6, 7]


def test_the_mode_shares_a_budget_over_pictures() -> None:
    model: Any = VLMS["llava"].model()
    inputs = prompt("llava", model, [2])
    kept: dict[object, list[int]] = {}
    for per in ("image", "row", "part", ("row", 4), ("part", 0, 6)):
        with torch.no_grad(), tithe.on(model, "fastervlm", keep=0.5, per=per, level="kept") as run:
            model(**inputs)
        keep = torch.cat([event.keep[0, 0] for event in run.trace.events])
        kept[str(per)] = keep.view(2, 16).sum(-1).tolist()
    assert kept["image"] == kept["part"] == [8, 8]
    assert sum(kept["row"]) == sum(kept["('row', 4)"]) == 16
    assert min(kept["('row', 4)"]) >= 4
    assert kept["('part', 0, 6)"] == [6, 6]
    with pytest.raises(BadInput, match=r"per='rows'.*Did you mean 'row'"):
        tithe.method("fastervlm", per="rows")
    with pytest.raises(tithe.Refused, match="per='row' is for methods"):
        tithe.method("fastv", per="row")
