"""Every image classifier and plain encoder: its tower, its blocks, the parts that are named, its CLS token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vision import EYE
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import tithe
from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.hosts import find
from tithe.scores.random import hashed
from tithe.selections.top_k import TopK
from tithe.types import IMAGE, Site, Step

SEEN = {**EYE, "image_size": 16}
TEXT = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT, DINO = ViTConfig(**SEEN, num_labels=5), Dinov2Config(**SEEN, num_labels=5)
CLIP, CLIP_SEEN = CLIPConfig(text_config=TEXT, vision_config=SEEN, projection_dim=8), CLIPVisionConfig(**SEEN)
SIGLIP, SIGLIP_SEEN = SiglipConfig(text_config=TEXT, vision_config=SEEN), SiglipVisionConfig(**SEEN)
MODELS: list[tuple[type[PreTrainedModel], Any, bool, bool]] = [
    (ViTModel, VIT, True, False),
    (ViTForImageClassification, VIT, True, False),
    (Dinov2Model, DINO, True, False),
    (Dinov2ForImageClassification, DINO, True, True),
    (CLIPVisionModel, CLIP_SEEN, True, False),
    (CLIPVisionModelWithProjection, CLIP_SEEN, True, False),
    (CLIPModel, CLIP, True, False),
    (CLIPForImageClassification, CLIP, True, True),
    (SiglipVisionModel, SIGLIP_SEEN, False, True),
    (SiglipModel, SIGLIP, False, True),
    (SiglipForImageClassification, SIGLIP, False, True),
]


@card(
    slug="half-of-patches",
    title="A test",
    year=2024,
    family="vision",
    hosts=("vit",),
    fidelity="definition",
    saving="real",
    mechanism="A test.",
)
def half_of_patches(keep: float = 0.5) -> Step:
    """Keep random patches after the first block."""
    return Step(
        Site("block", tower="image", layer=0),
        lambda evidence, tokens: hashed(tokens, 1, 0, 0),
        TopK(Budget(keep), among=IMAGE),
        Keep(),
    )


def seen(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """What a caller gets of an image: features, an embedding, or class logits."""
    with torch.no_grad():
        if isinstance(model, (CLIPModel, SiglipModel)):
            return model.get_image_features(pixel_values=pixels).pooler_output
        out = model(pixel_values=pixels)
    return out.logits if "logits" in out else out.image_embeds if "image_embeds" in out else out.pooler_output


@pytest.mark.parametrize(("kind", "config", "cls", "pools"), MODELS, ids=lambda p: getattr(p, "__name__", ""))
def test_tower_and_blocks(kind: type[PreTrainedModel], config: Any, cls: bool, pools: bool) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    host = find(model)
    vision = host.vision
    assert host.kind == "vit" and host.text is None and vision is not None and vision.tail is not None
    assert (vision.cls, vision.pools, len(vision.layers)) == (cls, pools, 3)
    for block in vision.layers:
        parts = [name for name, _ in block.named_modules()]
        assert parts.index(vision.tail.norm) < len(parts) and vision.tail.mlp in parts
        assert vision.tail.scale is None or vision.tail.scale in parts
    widths: list[int] = []
    handle = vision.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    pixels = torch.randn(2, 3, 16, 16)
    plain = seen(model, pixels)
    handle.remove()
    assert widths == [16 + cls]
    with tithe.on(model, half_of_patches(keep=0.5)) as run:
        shorter = seen(model, pixels)
    assert [event.kept for event in run.trace.events] == [(8.0 + cls,) * 2]
    assert shorter.shape == plain.shape and not torch.equal(shorter, plain)
    with tithe.on(model, half_of_patches(keep=1.0)):
        assert torch.equal(seen(model, pixels), plain)
    assert torch.equal(seen(model, pixels), plain)
