"""A policy under the seams: dropped tokens are tokens hidden by a mask, and everything is put back."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_robots
import torch
from torch import Tensor

import tithe
from tithe.actions import Drop
from tithe.errors import Refused
from tithe.hosts import find
from tithe.types import IMAGE, Card, Method, Selection, Site, Step, Tokens

CARD = Card("probe", "probe", 2025, None, None, "vision", ("vla",), "definition", "real", "probe.")


def thin(share: int, layer: int) -> Method:
    """Drop every image token but each ``share``-th before ``layer``."""

    def select(score: Tensor, tokens: Tokens) -> Selection:
        place = tokens.cols % share == 0
        return Selection(tokens.valid & (place | (tokens.kind != IMAGE)), tokens.cols)  # type: ignore[operator]

    step = Step(Site("layer", layer=layer), score=lambda _, t: t.cols.float(), select=select, action=Drop())
    return Method(CARD, {}, (step,))


def masked(model: Any, inputs: dict[str, Tensor], hidden: dict[int, Tensor]) -> Tensor:
    """The untouched model under masks that hide columns ``hidden[layer] [B, T]`` from a layer on."""
    handles = []

    def hide(columns: Tensor) -> Any:
        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            mask, steps = kwargs["attention_mask"], args[0].shape[1]
            wide = columns.shape[1] + (steps if mask.shape[-1] > columns.shape[1] else 0)
            gone = torch.zeros(len(columns), wide, dtype=torch.bool)
            gone[:, : columns.shape[1]] = columns
            floor = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask.masked_fill(gone[:, None, None], floor)}

        return before

    for layer in range(tiny_robots.LAYERS):
        columns = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for start, gone in hidden.items():
            columns |= gone if layer >= start else False
        for tower in (model.model.vlm.language_model, model.model.dit):
            handles.append(tower.layers[layer].register_forward_pre_hook(hide(columns), with_kwargs=True))
    model.set_attn_implementation("eager")
    try:
        return model.sample_actions(**inputs)
    finally:
        model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("ragged", [False, True])
def test_dropping_is_masking(implementation: str, ragged: bool) -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control(rows=3 if ragged else 1)
    image = inputs["input_ids"] == tiny_robots.IMAGE
    place = torch.arange(image.shape[1])
    wanted = masked(model, inputs, {1: image & (place % 3 != 0), 3: image & (place % 2 != 0)})
    model.set_attn_implementation(implementation)
    try:
        with tithe.on(model, [thin(3, 1), thin(2, 3)], level="kept") as run:
            got = model.sample_actions(**inputs)
    finally:
        model.set_attn_implementation("sdpa")
    assert (got - wanted).abs().max() < 5e-5
    assert [event.layer for event in run.trace.events] == [1, 3]
    assert run.report().flops < run.report().flops_full


def test_forward_that_is_trained_with_sees_the_same_prompt() -> None:
    """One call of the model, which reads the prompt and denoises once."""
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    given = {**inputs, "timestep": torch.full((2,), 0.5)}
    with torch.no_grad():
        plain = model(**given).logits
        with tithe.on(model, thin(100, 1)):
            pruned = model(**given).logits
        with tithe.on(model, thin(1, 1)):
            whole = model(**given).logits
    assert (whole - plain).abs().max() < 5e-5 < (pruned - plain).abs().max()


def test_everything_is_put_back() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    plain = model.sample_actions(**inputs)
    with tithe.on(model, ["efficientvla", "ttf-vla", tithe.method("vla-pruner", past=1)]):
        model.sample_actions(**inputs)
        model.sample_actions(**inputs)
    assert torch.equal(model.sample_actions(**inputs), plain)
    for name, part in model.named_modules():
        assert set(vars(part)) == set(before[name]), name
        assert not part._forward_hooks and not part._forward_pre_hooks


def test_prompt_without_ids_is_refused() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    embeds = model.model.embed_prefix(inputs["input_ids"], inputs["pixel_values"], inputs["pixel_attention_mask"])
    with tithe.on(model, "vla-pruner"), pytest.raises(Refused, match="inputs_embeds"), torch.no_grad():
        model(**{**inputs, "input_ids": None, "inputs_embeds": embeds.detach()})


def test_prompt_with_fewer_image_tokens_than_its_cameras_make() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control(rows=1)
    ids = inputs["input_ids"].clone()
    ids[0, 0] = 7
    with tithe.on(model, "ttf-vla"), pytest.raises(Refused, match=r"31.* image tokens"):
        model.sample_actions(**{**inputs, "input_ids": ids})


def test_hosts_and_methods_that_do_not_fit() -> None:
    model = tiny_robots.pi0()
    host = find(model)
    assert host.kind == "vla" and len(host.layers) == 4 and host.image_token == tiny_robots.IMAGE
    assert find(tiny_robots.vggt()).kind == "vggt"
    with pytest.raises(Refused, match="pi0 is a vla"):
        tithe.on(model, "fastvggt")
    with pytest.raises(Refused, match="vggt is a vggt"):
        tithe.on(tiny_robots.vggt(), "vla-pruner")
    with pytest.raises(Refused, match="already attached"), tithe.on(model, "vla-pruner"):
        tithe.on(model, "ttf-vla")
