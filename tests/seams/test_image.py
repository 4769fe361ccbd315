"""What the vision tower shows, against the attention weights of the stock model."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from masked_vision import drawn_patches
from tiny_vision import VLMS, prompt
from torch import Tensor, nn
from transformers import PreTrainedModel

import tithe
from tithe.catalogue import card
from tithe.hosts import find
from tithe.seams.image import TowerLayer
from tithe.types import Need, Site, Step


def looking(found: list[dict[int, TowerLayer]], layers: tuple[int, ...]) -> Any:
    """A method that only notes what it sees of each image."""

    def look(evidence: Any, tokens: Any) -> Tensor:
        found.append({layer: evidence.at(layer, "image") for layer in layers})
        return torch.zeros(1, 1, tokens.cols.shape[-1])

    @card(
        slug="looking",
        title="Looking",
        year=2024,
        family="explain",
        hosts=("vlm",),
        fidelity="definition",
        saving="none",
        mechanism="A test.",
    )
    def method() -> Step:
        return Step(
            Site("encoder", tower="image"), look, needs=tuple(Need("queries", n, tower="image") for n in layers)
        )

    return method()


def stock_weights(
    model: PreTrainedModel, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[Tensor]]:
    """Attention weights ``[crops, H, n, n]`` of every call in the tower, by layer, from the model's own eager code."""
    vision = find(model).vision
    assert vision is not None
    index = {part: n for n, layer in enumerate(vision.layers) for part in layer.modules()}
    attention = next(p for p in vision.layers[0].modules() if "ttention" in type(p).__name__)
    home = sys.modules[type(attention).__module__]
    own, seen = home.eager_attention_forward, {}

    def noting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out, weights = own(module, *args, **kwargs)
        if module in index:
            seen.setdefault(index[module], []).append(weights)
        return out, weights

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(home, "eager_attention_forward", noting)
        model(**inputs)
    return seen


@pytest.mark.parametrize("name", VLMS)
def test_probabilities_are_the_stock_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VLMS[name].model()
    model.set_attn_implementation("eager")
    inputs = prompt(name, model, [2, 1])
    stock = stock_weights(model, inputs, monkeypatch)
    vision = find(model).vision
    assert vision is not None
    layers = tuple(range(len(vision.layers)))
    model.set_attn_implementation("sdpa")
    found: list[dict[int, TowerLayer]] = []
    with torch.no_grad(), tithe.on(model, looking(found, layers)):
        model(**inputs)
    for layer in layers:
        got = [part.probs()[:, :, 0] for image in found for part in image[layer].parts]
        want = stock[layer] if len(stock[layer]) > 1 or len(stock[layer][0]) == 1 else []
        if not want:
            counts = [len(weights) for weights in got]
            want = list(stock[layer][0].split(counts))
        assert [g.shape for g in got] == [w.shape for w in want]
        assert max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True)) < 1e-5


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_patches_hidden_by_the_towers_mask_are_not_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop filled up with blank pixels: the tower masks the blank patches."""
    model = VLMS[name].model()
    inputs = prompt(name, model, [1])
    inputs["pixel_attention_mask"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    inputs["pixel_attention_mask"][..., 20:] = False
    model.set_attn_implementation("eager")
    (want,) = stock_weights(model, inputs, monkeypatch)[1]
    model.set_attn_implementation("sdpa")
    found: list[dict[int, TowerLayer]] = []
    with torch.no_grad(), tithe.on(model, looking(found, (1,))):
        model(**inputs)
    got = found[0][1].patches(lambda part: part.probs().mean((1, 2)).sum(1))
    live = torch.arange(8).repeat(8) < 5
    assert bool((got[0, ~live] == 0).all())
    assert float((got[0, live] - want.mean(1).sum(1)[0, live]).abs().max()) < 1e-4


def test_parts_of_a_packed_tower_are_joined_along_the_sequence() -> None:
    model = VLMS["qwen2_5_vl"].model()
    inputs = prompt("qwen2_5_vl", model, [2, 1])
    found: list[dict[int, TowerLayer]] = []
    with torch.no_grad(), tithe.on(model, looking(found, (0, 1))):
        model(**inputs)
    for image, grid in zip(found, inputs["image_grid_thw"].tolist(), strict=True):
        patches = grid[1] * grid[2]
        windows, whole = image[0], image[1]
        assert len(windows.parts) > 1 and len(whole.parts) == 1
        for layer in (windows, whole):
            assert layer.patches(lambda part: part.probs().mean((1, 2)).sum(1)).shape == (1, patches)
            assert layer.keys.shape == layer.values.shape == (1, 2, patches, 8)


def test_what_was_seen_is_freed_after_the_forward() -> None:
    model = VLMS["llava"].model()
    found: list[dict[int, TowerLayer]] = []
    with torch.no_grad(), tithe.on(model, looking(found, (1,))) as run:
        model(**prompt("llava", model, [1]))
        assert found and not run.tower.seen and not run.tower.encodings


def test_features_given_from_outside_serve_what_reads_no_tower() -> None:
    model = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        output = model.get_image_features(pixel_values=pixels, return_dict=True)
        with tithe.on(model, drawn_patches(keep=0.5)):
            direct = model(**inputs, pixel_values=pixels).logits
            assert torch.equal(model(**inputs, mm_encoder_outputs={"image": output}).logits, direct)
        with tithe.on(model, looking([], (1,))), pytest.raises(tithe.Refused, match="has not run"):
            model(**inputs, mm_encoder_outputs={"image": output})
