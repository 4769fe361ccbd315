"""Dropping tokens between layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_vision import TOLERANCE, masked_logits
from tiny import TEXT, VOCAB
from torch import Tensor
from transformers import PreTrainedModel

import tithe
from tithe.actions import Drop
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.seams.layers import sliced, take
from tithe.selections.top_k import TopK
from tithe.types import Need, Selection, Site, Step

ABOUT: dict[str, Any] = {
    "title": "A test",
    "year": 2024,
    "family": "context",
    "hosts": ("llm",),
    "fidelity": "definition",
    "saving": "real",
    "mechanism": "A test.",
}
TIGHT = 1e-4


@card(slug="drops", **ABOUT)
def drops(keep: float = 0.6, layer: int = 1, below: bool = False) -> Step:
    """Drop random columns before a layer."""
    return Step(
        Site("layer", layer=layer),
        lambda evidence, tokens: torch.cos(tokens.cols.float() * (7.7 + layer)),
        TopK(Budget(keep, recent=1)),
        Drop(below),
    )


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma3", "phi3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return TEXT[request.param]()


def inputs_of(padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(5, VOCAB, (2, 30), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :7] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def lost(event: Any, width: int) -> Tensor:
    gone = torch.zeros(2, width, dtype=torch.bool)
    for row in range(2):
        gone[row, event.cols[row, 0][~event.keep[row, 0] & (event.cols[row, 0] < 2**30)].long()] = True
    return gone


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_two_cuts_in_one_forward(model: PreTrainedModel, padded: bool, attention: str) -> None:
    model.set_attn_implementation(attention)
    inputs = inputs_of(padded)
    with torch.no_grad(), tithe.on(model, [drops(keep=0.7, layer=1), drops(keep=0.4, layer=2)], level="history") as run:
        got = model(**inputs).logits
    first, second = run.trace.history
    hidden = {1: lost(first, 30), 2: lost(second, 30)}
    want = masked_logits(model, inputs, hidden)
    assert second.cols.shape[-1] < first.cols.shape[-1]
    for row in range(2):
        stays = inputs["attention_mask"][row].bool() & ~hidden[1][row] & ~hidden[2][row]
        assert float((got[row, -int(stays.sum()) :] - want[row, stays]).abs().max()) <= TIGHT


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_below_forget_too(model: PreTrainedModel, padded: bool, attention: str) -> None:
    """With ``below`` the lower layers read everything in the prefill, and only what is kept from then on."""
    model.set_attn_implementation(attention)
    inputs = inputs_of(padded)
    tokens = torch.tensor([[7, 9], [8, 6]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    logits = []
    with torch.no_grad(), tithe.on(model, drops(keep=0.5, layer=2, below=True), level="history") as run:
        out = model(**inputs, use_cache=True)
        for step in range(2):
            given_mask = mask[:, : 31 + step]
            out = model(
                input_ids=tokens[:, step : step + 1],
                attention_mask=given_mask,
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            logits.append(out.logits[:, -1])
        held = [layer.store.length for layer in out.past_key_values.layers]
    (event,) = run.trace.history
    gone = lost(event, 32)
    later = gone[:, None] & (torch.arange(32) >= 30)[None, :, None]
    full = {
        "input_ids": torch.cat([inputs["input_ids"], tokens], 1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    want = masked_logits(model, full, {0: later, 2: gone})
    assert float((torch.stack(logits, 1) - want[:, 30:]).abs().max()) <= TIGHT
    assert len(set(held)) == 1 and held[0] < 32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_that_keeps_all_beside_one_that_does_not(model: PreTrainedModel, attention: str) -> None:
    """Slots and columns then agree in number but not in order: the mask must be gathered all the same."""
    model.set_attn_implementation(attention)
    inputs = inputs_of(True)

    @card(slug="one-row", **ABOUT)
    def one_row() -> Step:
        def select(score: Tensor, tokens: Any) -> Selection:
            odd = (tokens.cols % 2 == 1) | (torch.arange(2) == 0)[:, None, None]
            return Selection(tokens.valid & odd, tokens.cols)

        return Step(Site("layer", layer=1), lambda e, tokens: torch.zeros(tokens.cols.shape), select, Drop())

    tokens = torch.tensor([[7], [8]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    with torch.no_grad(), tithe.on(model, one_row(), level="history") as run:
        first = model(**inputs, use_cache=True)
        after = model(input_ids=tokens, attention_mask=mask, past_key_values=first.past_key_values).logits
    gone = lost(run.trace.history[0], 31)
    full = {
        "input_ids": torch.cat([inputs["input_ids"], tokens], 1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    want = masked_logits(model, full, {1: gone})
    assert first.logits.shape[1] == 30
    assert float((after[:, 0] - want[:, 30]).abs().max()) <= TIGHT
    for row in range(2):
        stays = inputs["attention_mask"][row].bool() & ~gone[row, :30]
        assert float((first.logits[row, -int(stays.sum()) :] - want[row, :30][stays]).abs().max()) <= TIGHT


def test_evidence_of_an_earlier_layer_is_there(model: PreTrainedModel) -> None:
    """A step before layer 2 reads layer 1 of the same forward: the attention of the last token."""
    model.set_attn_implementation("eager")
    inputs = inputs_of(False)
    seen: list[Tensor] = []

    @card(slug="reads-below", **ABOUT)
    def reads_below() -> Step:
        def score(evidence: Any, tokens: Any) -> Tensor:
            seen.append(evidence.at(1).probs(-1)[:, :, :, 0].flatten(1, 2))
            return seen[0].mean(1, keepdim=True)

        return Step(
            Site("layer", layer=2),
            score,
            TopK(Budget(0.5, recent=1)),
            Drop(),
            needs=(Need("queries", 1, window=1),),
        )

    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[1][:, :, -1]
        with tithe.on(model, reads_below()) as run:
            assert model(**inputs).logits.shape[1] == 15
    assert float((seen[0] - weights).abs().max()) < TOLERANCE
    assert run.trace.events[0].kept == (15.0, 15.0)


def test_slices_follow_the_tokens() -> None:
    index = torch.tensor([[-1, 0, 3], [1, 2, 4]])
    block = torch.arange(10).view(2, 5)
    assert take(block, index).tolist() == [[0, 0, 3], [6, 7, 9]]
    shared = torch.arange(5)[None]
    assert take(shared, index).tolist() == [[0, 0, 3], [1, 2, 4]]
    mask = torch.rand(2, 1, 5, 5)
    cos = torch.rand(1, 5, 4)
    mrope = torch.rand(3, 2, 5, 4)
    given = {"position_embeddings": (cos, mrope), "position_ids": block, "attention_mask": mask, "other": 1}
    out = sliced(given, index)
    for row in range(2):
        for slot, place in enumerate(index[row].clamp(min=0).tolist()):
            assert torch.equal(out["attention_mask"][row, :, slot], mask[row, :, place])
            assert torch.equal(out["position_embeddings"][0][row, slot], cos[0, place])
            assert torch.equal(out["position_embeddings"][1][:, row, slot], mrope[:, row, place])
            assert out["position_ids"][row, slot] == block[row, place]
    assert out["other"] == 1
