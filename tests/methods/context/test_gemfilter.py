from __future__ import annotations

import pytest
import torch
from methods.context.contract import contract, generate, model, padded
from methods.context.recorded import Recorded, vector
from torch import Tensor

import tithe
from tithe.errors import BadInput
from tithe.types import layer_at

VECTOR, META = vector("gemfilter")


@pytest.mark.parametrize("count", META["params"]["topk"])
@pytest.mark.parametrize("pads", [0, 13])
def test_prompt_like_the_authors(count: int, pads: int) -> None:
    recorded = Recorded(VECTOR["q"][0], VECTOR["k"][0])
    with tithe.on(recorded.model, "gemfilter", keep=count, layer=0, level="scores") as run:
        cache = recorded.play(96, pads=pads)
    event = run.trace.events[0]
    assert event.keep[0, 0, pads:].nonzero()[:, 0].tolist() == VECTOR[f"top{count}_sorted"].tolist()
    wanted = VECTOR["scores"] * 16**-0.5 / 4
    assert torch.allclose(event.scores[0, 0, pads:], wanted, atol=1e-5)
    assert cache.layers[0].store.length == count


def naive(q: Tensor, k: Tensor, count: int) -> list[int]:
    """The prompt kept, in loops and float64."""
    q, k = q.double(), k.double()
    length, group = k.shape[1], q.shape[0] // k.shape[0]
    logits = [sum(float(q[h, -1] @ k[h // group, c]) for h in range(q.shape[0])) for c in range(length)]
    smooth = [sum(logits[max(0, c - 2) : c + 3]) / 5 for c in range(length)]
    return sorted(sorted(range(length), key=lambda c: -smooth[c])[:count])


@pytest.mark.parametrize("count", [3, 17, 60])
def test_naive_reference(count: int) -> None:
    recorded = Recorded(VECTOR["q"][0], VECTOR["k"][0])
    with tithe.on(recorded.model, "gemfilter", keep=count, layer=0, level="kept") as run:
        recorded.play(96)
    assert run.trace.events[0].keep[0, 0].nonzero()[:, 0].tolist() == naive(VECTOR["q"][0], VECTOR["k"][0], count)


def test_contract() -> None:
    contract("gemfilter", layer=1)


def test_the_model_reads_the_short_prompt_as_if_it_were_all() -> None:
    inputs = padded()
    with tithe.on(model(), "gemfilter", keep=12, layer=1, level="kept") as run:
        out = model().generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        assert run.report().kv_live == 2 * (12 + 5) * 3 * 2 * 2 * 16 * 4
    keep = run.trace.events[0].keep[:, 0]
    short = inputs["input_ids"][keep].view(2, 12)
    wanted = model().generate(
        short,
        attention_mask=torch.ones_like(short),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
    )
    assert torch.equal(out[:, 40:], wanted[:, 12:])


def test_a_layer_beyond_the_model_is_refused() -> None:
    with pytest.raises(BadInput, match="layer=13"):
        tithe.on(model(), "gemfilter", layer=13)


def test_the_layer_is_a_share_of_the_depth() -> None:
    shares = [tithe.method("gemfilter").steps[0].needs[0].layer, *tithe.method("tidaldecode").steps[0].site.layer]
    assert [layer_at(share, 32) for share in shares] == [13, 2, 13]
    sets = [generate("gemfilter", padded(), keep=9, **given)[1][0].keep for given in ({}, {"layer": 1}, {"layer": 0})]
    assert torch.equal(sets[0], sets[1]) and not torch.equal(sets[0], sets[2])
