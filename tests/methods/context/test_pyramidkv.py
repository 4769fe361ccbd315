from __future__ import annotations

import pytest
import torch
from methods.context.contract import contract, generate, padded
from methods.context.recorded import Recorded, grouped, held, same_set, vector

import tithe
from tithe.errors import BadInput
from tithe.selections.layers import pyramid

VECTOR, META = vector("pyramidkv")
GIVEN = META["params"]["kept"]


@pytest.mark.parametrize("case", range(len(VECTOR["grid"])))
def test_counts_like_the_authors(case: int) -> None:
    seen, count, window, layers, beta = VECTOR["grid"][case].tolist()
    rows = torch.tensor([seen])
    share = torch.tensor([min(seen, count)])
    got = [int(pyramid(share, rows, window, layer, layers, beta)) for layer in range(layers)]
    assert got == VECTOR["held"][case, :layers].tolist()


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("pads", [0, 13])
def test_sets_like_the_authors(groups: bool, pads: int) -> None:
    k = VECTOR["k"] if groups else grouped(VECTOR["k"], 4)
    recorded = Recorded(VECTOR["q"].expand(4, -1, -1, -1), k.expand(4, -1, -1, -1))
    params = {"window": GIVEN["window_size"], "kernel": GIVEN["kernel_size"], "beta": GIVEN["beta"]}
    with tithe.on(recorded.model, "pyramidkv", keep=GIVEN["max_capacity_prompt"], level="scores", **params) as run:
        cache = recorded.play(96, pads=pads)
        run.end_prefill()
    name = "gqamean_kept" if groups else "kept"
    for layer in range(4):
        for head, cols in enumerate(held(cache, layer)):
            assert same_set([c - pads for c in cols], VECTOR[f"l{layer}_{name}"][head]), (layer, head)
    scores = run.trace.events[0].scores[0, :, pads : pads + 88]
    assert torch.allclose(scores, VECTOR["scores_gqamean" if groups else "scores"], atol=1e-5)


def naive(seen: int, count: int, window: int, layers: int, beta: int) -> list[int]:
    """The counts in plain integers: an arithmetic sequence around the even share, clamped to the prompt."""
    even = count - window
    if seen <= count or seen < 2 * even:
        return [min(seen, count)] * layers
    top = min(2 * even - even // beta, seen - window)
    step = (2 * top - 2 * even) // (layers - 1)
    return [window + top - layer * step for layer in range(layers)]


@pytest.mark.parametrize("keep", [9, 14, 20, 0.3, 0.75])
def test_every_row_has_its_own_pyramid(keep: float) -> None:
    _, events = generate("pyramidkv", padded(), keep=keep, window=4, kernel=3, beta=5)
    for row, seen in enumerate((40, 29)):
        count = max(4, int(keep * seen)) if isinstance(keep, float) else keep
        assert [event.heads_kept[row] for event in events] == [(n, n) for n in naive(seen, count, 4, 3, 5)]


def test_contract() -> None:
    contract("pyramidkv", window=4, kernel=3)


def test_beta_is_checked() -> None:
    with pytest.raises(BadInput, match="beta=0"):
        tithe.method("pyramidkv", beta=0)
