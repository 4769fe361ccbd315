"""What the tiny random LLaVA shows of itself with nothing attached: features, attention and states of every layer."""

from __future__ import annotations

from typing import Any

import torch
from methods.vision.contract import model
from torch import Tensor


def features(inputs: dict[str, Tensor]) -> list[Tensor]:
    """The image tokens of every picture as the language model reads them, each ``[n, d]``."""
    with torch.no_grad():
        return list(model().model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)


def whole(inputs: dict[str, Tensor]) -> Any:
    """The model's own forward: ``attentions`` of the language model, and the ``hidden_states`` between its layers."""
    own = model().config._attn_implementation
    model().set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model()(**inputs, output_attentions=True, output_hidden_states=True)
    finally:
        model().set_attn_implementation(own)


def kinds(inputs: dict[str, Tensor], row: int) -> tuple[list[int], list[int]]:
    """The live columns of a row: those of text, and those of images."""
    image = model().config.image_token_id
    live = inputs["attention_mask"][row].nonzero()[:, 0].tolist()
    ids = inputs["input_ids"][row].tolist()
    return [col for col in live if ids[col] != image], [col for col in live if ids[col] == image]
