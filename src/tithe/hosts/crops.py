"""How patches of the vision tower become image tokens, family by family: the same grouping as each connector's.

Mosaics of crops are in ``mosaics``, packed sequences of patches in ``packed``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tithe.hosts import layouts
from tithe.hosts.base import Crops

CLS_TOWERS = ("clip_vision_model", "internvl_vision")


def single(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """LLaVA 1.5: one crop an image, one token a patch. A tower over packed images of any size is not read."""
    if inputs.get("image_sizes") is not None:
        return [Crops(size) for size in sizes]
    first = first_slot(model, inputs)
    read = inputs.get("vision_feature_layer") or model.config.vision_feature_layer
    read = [read] if isinstance(read, int) else read

    def entering(n: int) -> Callable[[Any], Tensor]:
        return lambda output: torch.cat([output.hidden_states[layer][n, first:] for layer in read], -1)

    return [
        Crops(
            size,
            square(size),
            slice(n, n + 1),
            to_tokens=lambda patches: patches[0, first:],
            entering=entering(n),
            connect=model.base_model.multi_modal_projector,
            layout=layouts.single(square(size), size),
        )
        for n, size in enumerate(sizes)
    ]


def tiled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """InternVL: every tile an image of its own, patches joined by the model's pixel shuffle."""
    first, ratio = first_slot(model, inputs), model.config.downsample_ratio

    def to_tokens(patches: Tensor) -> Tensor:
        side = math.isqrt(patches.shape[1] - first)
        return model.base_model.pixel_shuffle(patches[:1, first:].reshape(1, side, side, 1), ratio).mean(-1).flatten()

    return [
        Crops(
            size,
            square(size),
            slice(n, n + 1),
            to_tokens=to_tokens,
            layout=layouts.single(square(size), size, tile=True),
        )
        for n, size in enumerate(sizes)
    ]


def shuffled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """Idefics3 and SmolVLM: every crop an image of its own; the encoder's output has one entry a row of the batch."""
    config, connector = model.config, model.base_model.connector
    height, width = inputs["pixel_values"].shape[-2:]
    patch, scale = config.vision_config.patch_size, config.scale_factor
    each = (height // patch) * (width // patch) // scale**2

    def to_tokens(patches: Tensor) -> Tensor:
        return connector.pixel_shuffle(patches[:1, :, None], scale).mean(-1)[0]

    return [Crops(each, square(each), slice(n, n + 1), to_tokens=to_tokens) for n in range(sum(sizes) // each)]


def pooled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """Gemma3: every crop an image of its own, patches averaged by the model's pooling."""
    pool = model.base_model.multi_modal_projector.avg_pool

    def to_tokens(patches: Tensor) -> Tensor:
        side = math.isqrt(patches.shape[1])
        return pool(patches[:1].reshape(1, 1, side, side)).flatten()

    return [Crops(size, square(size), slice(n, n + 1), to_tokens=to_tokens) for n, size in enumerate(sizes)]


def first_slot(model: Any, inputs: dict[str, Any]) -> int:
    """Return the first slot of the tower that becomes a token: 1 where the CLS token is left out."""
    given = inputs.get("vision_feature_select_strategy")
    return int((given or model.config.vision_feature_select_strategy) == "default")


def square(size: int) -> tuple[int, int] | None:
    side = math.isqrt(size)
    return (side, side) if side * side == size else None
