"""Choosing and merging image features after the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_vision import TOLERANCE, drawn_columns, drawn_patches, dropped, encode, masked_logits
from tiny_vision import IMAGE, VLMS, prompt
from torch import Tensor

import tithe
from tithe.actions import Evict
from tithe.actions.keep import Keep
from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.hosts.base import Crops
from tithe.seams.gallery import repeated
from tithe.seams.merging import joined
from tithe.selections.top_k import TopK
from tithe.types import Selection, Site, Step, Tokens

ABOUT: dict[str, Any] = {
    "title": "A test",
    "year": 2024,
    "family": "vision",
    "hosts": ("vlm",),
    "fidelity": "definition",
    "saving": "real",
    "mechanism": "A test.",
}


def zeros(evidence: Any, tokens: Tokens) -> Tensor:
    return torch.zeros(tokens.cols.shape)


def threes(score: Tensor, tokens: Tokens, weight: Tensor | None = None) -> Selection:
    """Every third token takes in the two behind it."""
    place = torch.arange(tokens.cols.shape[-1])
    keep = (place % 3 == 0)[None, None]
    dest = torch.where(place % 3 == 0, -1, place - place % 3)[None, None]
    return Selection(keep, tokens.cols, dest, weight)


@card(slug="threes", **ABOUT)
def by_mean() -> Step:
    """Join with equal shares."""
    return Step(Site("encoder", tower="image"), zeros, threes, Merge())


@card(slug="threes-weighed", **ABOUT)
def by_share() -> Step:
    """Join with shares that need not sum to 1."""

    def select(score: Tensor, tokens: Tokens) -> Selection:
        place = torch.arange(tokens.cols.shape[-1])
        return threes(score, tokens, torch.where(place % 3 == 0, 1.0, 0.25)[None, None])

    return Step(Site("encoder", tower="image"), zeros, select, Merge())


@pytest.mark.parametrize(("method", "shares"), [(by_mean, None), (by_share, (1.0, 0.25, 0.25))])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_merged_features_reach_the_model(name: str, method: Any, shares: tuple[float, ...] | None) -> None:
    """Features of deeper layers (Qwen3-VL) are merged alike."""
    model = VLMS[name].model()
    inputs = prompt(name, model, [2, 1])
    with torch.no_grad(), tithe.on(model, method(), level="history") as run:
        got = model(**inputs).logits
    ids = inputs["input_ids"]
    lost = dropped(run, ids, 0)
    images = encode(model, inputs)
    levels = [torch.cat([row[level] for row in images.rows]) for level in range(len(images.rows[0]))]
    start = 0
    for event in run.trace.history:
        count = event.seen[0]
        for level in levels:
            image = level[start : start + count].clone()
            for place in range(0, count, 3):
                group = image[place : place + 3]
                share = (
                    torch.full((len(group),), 1 / len(group)) if shares is None else torch.tensor(shares[: len(group)])
                )
                level[start + place] = (group * share[:, None]).sum(0)
        start += count
    output = type(images.output)()
    tensor = isinstance(images.output.pooler_output, Tensor)
    output.pooler_output = levels[0][None] if tensor else [levels[0]]
    if len(levels) > 1:
        output.deepstack_features = [[level] for level in levels[1:]]
    full: dict[str, Any] = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
    full["mm_encoder_outputs"] = {"image": output}
    full["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if name == "qwen3_vl":
        full["position_ids"], _ = model.base_model.get_rope_index(
            ids, inputs["mm_token_type_ids"], inputs["image_grid_thw"], attention_mask=inputs["attention_mask"]
        )
    want = masked_logits(model, full, {0: lost})
    for row, stays in enumerate(inputs["attention_mask"].bool() & ~lost):
        assert float((got[row, -int(stays.sum()) :] - want[row, stays]).abs().max()) <= TOLERANCE


def test_a_later_step_chooses_among_what_is_left() -> None:
    model = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])

    @card(slug="first-of-those-left", **ABOUT)
    def first(count: int = 3) -> Step:
        return Step(Site("encoder", tower="image"), zeros, TopK(Budget(count)), Keep())

    with torch.no_grad(), tithe.on(model, [drawn_patches(keep=0.5), first(count=3)], level="history") as run:
        logits = model(**inputs).logits
    before, after = run.trace.history
    assert before.keep is not None and after.keep is not None
    chosen = before.keep[0, 0].nonzero()[:3, 0].tolist()
    assert after.keep[0, 0].nonzero()[:, 0].tolist() == chosen
    assert after.seen == before.seen == (16,)
    assert logits.shape[1] == int((inputs["input_ids"] != IMAGE).sum()) + 3


def test_image_and_column_and_cache_cuts_compose() -> None:
    """One method after the encoder, one before a layer, one in the cache at the end of the prefill."""
    model = VLMS["llava"].model()
    inputs = prompt("llava", model, [2, 1])

    @card(slug="evicts", **{**ABOUT, "family": "context"})
    def evicts(keep: float = 0.6) -> Step:
        return Step(
            Site("attention", layer=(0, 1)),
            lambda evidence, tokens: torch.cos(tokens.cols.float() * 7.7),
            TopK(Budget(keep, recent=2)),
            Evict(),
        )

    methods = [drawn_patches(keep=0.6), drawn_columns(keep=0.7), evicts()]
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    width = ids.shape[1]
    token = torch.tensor([[11], [12]])
    grown = torch.cat([mask, torch.ones_like(token)], 1)
    with torch.no_grad(), tithe.on(model, methods, level="history") as run:
        out = model(**inputs, use_cache=True)
        got = model(input_ids=token, attention_mask=grown, past_key_values=out.past_key_values).logits
    hidden = torch.zeros(4, 2, width + 1, width + 1, dtype=torch.bool)
    events = run.trace.history
    kept = torch.cat([event.keep[0, 0] for event in events if event.point == "encoder" and event.keep is not None])
    images = torch.zeros_like(ids, dtype=torch.bool)
    images[ids == IMAGE] = ~kept
    hidden[..., :width] |= images[None, :, None]
    for event in events:
        if event.point == "encoder" or event.cols is None or event.keep is None or event.layer is None:
            continue
        for row in range(2):
            gone = event.cols[row, 0][~event.keep[row, 0] & (event.cols[row, 0] < 2**30)].long()
            if event.point == "layer":
                hidden[event.layer :, row, :, gone] = True
            else:
                hidden[event.layer, row, width:, gone] = True
    story = encode(model, inputs)
    output = type(story.output)()
    output.pooler_output = [torch.cat([row[0] for row in story.rows])]
    full = {
        "input_ids": torch.cat([ids, token], 1),
        "attention_mask": grown,
        "position_ids": (grown.cumsum(-1) - 1).clamp(min=0),
        "mm_encoder_outputs": {"image": output},
    }
    want = layered_logits(model, full, hidden)
    assert {event.point for event in events} == {"encoder", "layer", "attention"}
    assert float((got[:, -1] - want[:, -1]).abs().max()) <= TOLERANCE
    shown = mask.bool() & ~hidden[3, :, 0, :width]
    for row in range(2):
        assert (
            float((out.logits[row, -int(shown[row].sum()) :] - want[row, :width][shown[row]]).abs().max()) <= TOLERANCE
        )


def layered_logits(model: Any, inputs: dict[str, Any], hidden: Tensor) -> Tensor:
    """The stock model with ``hidden [layers, B, T, T]``, columns hidden from each query in each layer."""
    mask, width = inputs["attention_mask"], inputs["input_ids"].shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril() & mask.bool()[:, None]
    own = torch.eye(width, dtype=torch.bool)

    def hook(layer: int) -> Any:
        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            allowed = (causal & ~hidden[layer]) | own
            return args, {
                **kwargs,
                "attention_mask": torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None],
            }

        return before

    layers = model.get_decoder().layers
    handles = [layer.register_forward_pre_hook(hook(n), with_kwargs=True) for n, layer in enumerate(layers)]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def test_joining_by_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, size = torch.randn(2, 7, 3, generator=draw), torch.rand(2, 7, generator=draw) * 4 + 1
    dest = torch.tensor([[-1, 0, 0, -1, 3, -1, 5], [-1, -1, 1, 1, 1, 0, -1]])
    got, sizes = joined(rows, dest, size, None)
    for b in range(2):
        for i in range(7):
            if dest[b, i] >= 0:
                assert torch.equal(got[b, i], rows[b, i])
                continue
            group = [i, *[j for j in range(7) if dest[b, j] == i]]
            total = sum(size[b, j] for j in group)
            want = torch.stack([rows[b, j] * size[b, j] for j in group]).sum(0) / total
            assert torch.allclose(got[b, i], want, atol=1e-6)
            assert sizes[b, i] == pytest.approx(float(total), rel=1e-6)


def test_repeated_images_find_what_the_tower_saw() -> None:
    """Three images in rows of two and one, the last in two crops; every row three times."""
    crops = [Crops(4, (1, 4)), Crops(6, (2, 3)), Crops(2, (1, 2)), Crops(3, (1, 3))]
    given = [4, 6] * 3 + [5] * 3
    found = repeated(crops, [4, 6, 5], given, [10, 10, 10, 5, 5, 5])
    assert [crop.tokens for crop in found] == [4, 6] * 3 + [2, 3] * 3
    assert all(crop is crops[index] for crop, index in zip(found, [0, 1] * 3 + [2, 3] * 3, strict=True))
    empty = repeated(crops[:2], [0, 4, 6, 0], [0, 0, 4, 4, 6, 6, 0, 0], [0, 0, 4, 4, 6, 6, 0, 0])
    assert [crop.tokens for crop in empty] == [4, 4, 6, 6]
