"""Patch scores against the connector itself: by gradients, which patches make a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vision import VLMS, prompt
from torch import Tensor, nn
from transformers import PreTrainedModel

from tithe.hosts import find
from tithe.hosts.base import Crops
from tithe.seams.features import sizes


def _leaf(model: Any, images: dict[str, Any]) -> tuple[Tensor, Any]:
    """Encode with the tower's patches replaced by one leaf ``[crops, patches, d]``; return it and the output."""
    tower, made = model.get_encoder("image"), []

    def fresh(hidden: Tensor) -> Tensor:
        made.append(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).requires_grad_())
        return made[0]

    def entering(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (fresh(args[0]),)

    def leaving(module: nn.Module, args: Any, output: Any) -> Any:
        leaf = fresh(output.last_hidden_state)
        output.last_hidden_state = leaf
        output.hidden_states = None if output.hidden_states is None else [leaf] * (len(tower.config.to_dict()) + 9)
        return output

    merger = getattr(tower, "merger", None)
    handle = merger.register_forward_pre_hook(entering) if merger else tower.register_forward_hook(leaving)
    try:
        output = model.base_model.get_image_features(**images, return_dict=True)
    finally:
        handle.remove()
    return made[0], output


def _weights(features: Tensor, leaf: Tensor) -> Tensor:
    """How much each patch ``[crops, patches]`` matters to one token: the norm of its gradient."""
    draw = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((features * draw).sum(), leaf, retain_graph=True, allow_unused=True)
    weight = torch.zeros(leaf.shape[:-1]) if gradient is None else gradient.norm(dim=-1)
    return weight.view(-1, weight.shape[-1])


@pytest.mark.parametrize("name", VLMS)
def test_a_token_scores_the_mean_of_the_patches_that_make_it(name: str) -> None:
    model: Any = VLMS[name].model()
    inputs = prompt(name, model, [2, 1])
    images = {key: value for key, value in inputs.items() if "pixel" in key or "image" in key or "batch" in key}
    leaf, output = _leaf(model, images)
    vision = find(model).vision
    assert vision is not None and vision.crops is not None
    crops: list[Crops] = vision.crops(model, sizes(output), images)
    features = torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in output.pooler_output])
    assert sum(crop.tokens for crop in crops) == len(features)
    scores = torch.rand(leaf.shape[:-1], generator=torch.Generator().manual_seed(3)).view(-1, leaf.shape[-2])
    token = 0
    newlines = 0
    for crop in crops:
        assert crop.to_tokens is not None
        mine = scores[crop.rows] if crop.rows is not None else scores[:, crop.span]
        got = crop.to_tokens(mine)
        assert got.shape == (crop.tokens,)
        if crop.grid is not None:
            assert crop.grid[0] * crop.grid[1] == crop.tokens
        for score in got.tolist():
            weight = _weights(features[token], leaf)
            group = scores[weight > 0]
            if not len(group):
                newlines += 1
                assert score < float(mine.min())
            elif name == "llava_onevision" and len(group) > 1:
                assert float(group.min()) <= score <= float(group.max())
            else:
                assert score == pytest.approx(float(group.mean()), abs=1e-6)
            token += 1
    assert (newlines > 0) == (name in ("llava_next", "llava_onevision"))


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
def test_the_cls_token_is_a_token_where_the_features_have_it(name: str) -> None:
    """A tower's CLS slot is left out under the default strategy, and never silently shifts the patches."""
    model: PreTrainedModel = VLMS[name].model()
    inputs = prompt(name, model, [1])
    vision = find(model).vision
    assert vision is not None and vision.crops is not None and vision.cls
    images = {key: value for key, value in inputs.items() if "pixel" in key or "image" in key}
    count = int((inputs["input_ids"] == model.config.image_token_id).sum())
    (crop,) = vision.crops(model, [count], images)
    patches = 65 if name == "internvl" else 17
    rows = 1 if name != "llava_next" else crop.rows.stop
    scores = torch.zeros(rows, patches)
    scores[:, 0] = 1e6
    assert crop.to_tokens is not None
    assert float(crop.to_tokens(scores).max()) == 0.0
