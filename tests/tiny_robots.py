"""Tiny random models of robots and of scenes: a pi0 with two cameras and a geometry transformer, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PI0Config, PI0ForConditionalGeneration

from tithe.modules.vggt import VGGT, VGGTConfig

IMAGE, TOKENS, LAYERS, CHUNK = 60, 16, 4, 3
TEXT: dict[str, Any] = {
    "model_type": "gemma",
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
EYE: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "vision_use_head": False,
}


def random_(model: Any, seed: int = 0) -> Any:
    """Give every matrix of ``model`` weights large enough for its tokens to differ."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * parameter.shape[-1] ** -0.5)
    return model.eval()


@cache
def pi0() -> PI0ForConditionalGeneration:
    """pi0: 4 layers of width 32, 16 image tokens a camera, 3 actions of 2 numbers, 4 denoising steps."""
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {**TEXT, "vocab_size": 64},
            "vision_config": EYE,
            "projection_dim": 32,
            "image_token_id": IMAGE,
        },
        dit_config=TEXT,
        chunk_size=CHUNK,
        max_state_dim=2,
        max_action_dim=2,
        num_inference_steps=4,
    )
    return random_(PI0ForConditionalGeneration(config))


def control(rows: int = 2, seed: int = 3) -> dict[str, Tensor]:
    """Inputs of ``rows`` robots; from the second on one camera less, and the prompt padded on the right."""
    draw = torch.Generator().manual_seed(seed)
    cameras = torch.tensor([2] + [1] * (rows - 1))
    length = 2 * TOKENS + 5
    ids = torch.full((rows, length), 0)
    for row, count in enumerate(cameras.tolist()):
        words = torch.randint(5, 50, (5 - row % 2,), generator=draw)
        line = torch.cat([torch.full((count * TOKENS,), IMAGE), words])
        ids[row, : len(line)] = line
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(rows, 2, 3, 16, 16, generator=draw),
        "pixel_attention_mask": torch.arange(2)[None] < cameras[:, None],
        "state": torch.randn(rows, 2, generator=draw),
        "noise": torch.randn(rows, CHUNK, 2, generator=draw),
    }


@cache
def vggt() -> VGGT:
    """A geometry transformer of 2 pairs of layers, width 32, 4 x 6 patches a frame in the inputs below."""
    config = VGGTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, layer_scale=1.0
    )
    return random_(VGGT(config))


def frames(rows: int = 2, count: int = 5, seed: int = 3) -> dict[str, Tensor]:
    """``count`` frames of 4 x 6 patches in each of ``rows``."""
    return {"images": torch.randn(rows, count, 3, 16, 24, generator=torch.Generator().manual_seed(seed))}


MADE: dict[str, Callable[[], tuple[Any, dict[str, Tensor]]]] = {
    "vla": lambda: (pi0(), control()),
    "vggt": lambda: (vggt(), frames()),
}
