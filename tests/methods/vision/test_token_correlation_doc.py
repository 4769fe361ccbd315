from __future__ import annotations

import numpy as np
import pytest
import torch
from methods.vision import highres
from methods.vision.contract import contract, layer, right
from methods.vision.highres import Cell, chosen, decide, generated, places, seen

from tithe import method
from tithe.errors import BadInput

SIDE = 8
MANY = 0.15  # tiny random towers: some patches are redundant, not all


@pytest.mark.parametrize("bounds", [(1, None), (0.3, 0.4), (5, 6)])
def test_against_loops(bounds: tuple[float, float | None]) -> None:
    """Three crops: one all different, one half repeated, one that repeats itself."""
    cells = places(SIDE, (2, 1), (60, 20))
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 2, SIDE * SIDE + 1, 8, generator=draw) for _ in range(2))
    k[1, 1, :, :33] = 3 * torch.randn(2, 1, 8, generator=draw) + 0.4 * k[1, 1, :, :33]
    k[1, 2] = 3 * torch.randn(2, 1, 8, generator=draw) + 0.4 * k[1, 2]
    evidence, tokens = seen([layer(q[n], k[n]) for n in range(2)], cells, SIDE, 3)
    floor, ceiling = bounds
    params = {"alike": 0.6, "many": 0.2, "floor": floor, "ceiling": ceiling}
    ours = chosen(decide(method("token-correlation-doc", layer=1, **params), evidence, tokens), cells)
    rows = [(q[n, :, :, :1].double() @ k[n].double().mT / 8**0.5).softmax(-1).mean(1)[:, 0] for n in range(2)]
    wanted: set[Cell] = set()
    counts = []
    for crop in range(3):
        own = [cell for cell in cells if cell is not None and cell[0] == crop]
        slots = [1 + cell[1] * SIDE + cell[2] for cell in own]
        keys = k[1, crop].double().transpose(0, 1).flatten(1)[slots]
        redundant = 0
        for a in range(len(own)):
            same = sum(float(torch.cosine_similarity(keys[a], keys[b], dim=0)) > 0.6 for b in range(len(own)) if b != a)
            redundant += same > 0.2 * (len(own) - 1)
        least, most = (
            bound if isinstance(bound, int) else int(bound * len(own)) for bound in (floor, ceiling or len(own))
        )
        counts.append(min(max(round(len(own) * (1 - redundant / len(own))), least), most))
        early, late = ([float(rows[n][crop, slot]) for slot in slots] for n in range(2))
        low, high = np.percentile(late, 25), np.percentile(late, 75)
        out = [n for n in sorted(range(len(own)), key=lambda n: -late[n]) if late[n] > high + 1.5 * (high - low)]
        picked = out[: counts[-1]]
        rest = sorted((n for n in range(len(own)) if n not in picked), key=lambda n: -early[n])
        wanted |= {own[n] for n in picked + rest[: counts[-1] - len(picked)]}
    assert ours == wanted
    if bounds == (1, None):
        assert counts[0] > counts[1] > counts[2] == 1


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
def test_effect_on_tiny_hosts_with_several_pictures(name: str) -> None:
    _, free, _ = generated(name, "token-correlation-doc", [1, 2], many=MANY)
    _, bound, _ = generated(name, "token-correlation-doc", [1, 2], many=MANY, ceiling=2)
    assert len(free.trace.events) == len(bound.trace.events) == 3
    for wide, narrow in zip(free.trace.events, bound.trace.events, strict=True):
        assert 0 < sum(narrow.kept) < sum(wide.kept) < sum(wide.seen)


def test_reads_better_than_random_tokens() -> None:
    ours, chance = right("token-correlation-doc", floor=18, ceiling=18), right("random-patches", keep=18)
    assert ours >= chance + 0.2, f"{ours:.3f}, random {chance:.3f} at 18 image tokens"


@pytest.mark.parametrize("wrong", [{"many": 1.5}, {"alike": 2.0}, {"floor": -1}, {"ceiling": 1.2}])
def test_bounds_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        method("token-correlation-doc", **wrong)


def test_contract() -> None:
    contract("token-correlation-doc")


def test_contract_on_pictures_with_crops() -> None:
    highres.contract("token-correlation-doc")
