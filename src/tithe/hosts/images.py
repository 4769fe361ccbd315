"""Vision-language models: where their towers are and how patches become image tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tithe.errors import Refused
from tithe.hosts.base import Crops, Host, Vision, blocks

Cropper = Callable[[Any, list[int], dict[str, Any]], list[Crops]]


def llava_crops(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """LLaVA 1.5: one crop an image, one token a patch, CLS left out where the features leave it out."""
    drop_cls = model.config.vision_feature_select_strategy == "default"

    def to_tokens(patches: Tensor) -> Tensor:
        return patches[0, 1:] if drop_cls else patches[0]

    side = [round(size**0.5) for size in sizes]
    return [
        Crops(slice(n, n + 1), (s, s) if s * s == size else None, to_tokens)
        for n, (size, s) in enumerate(zip(sizes, side, strict=True))
    ]


FAMILIES: dict[str, Cropper] = {"llava": llava_crops}


def build(model: PreTrainedModel) -> Host:
    """Return the host of a vision-language model."""
    kind = str(model.config.model_type)
    text, tower = model.get_decoder(), model.get_encoder("image")
    if tower is model or text is model:
        raise Refused(f"model type {kind!r}: no vision tower and text decoder were found on it.")
    vision = Vision(tower, blocks(tower), tower.config.model_type == "clip_vision_model", crops=FAMILIES[kind])
    return Host("vlm", kind, model, text, blocks(text), vision, model.config.image_token_id)
