"""LLaVA-NeXT and LLaVA-OneVision: pictures as a base view and a mosaic of crops, clips as pooled frames."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tithe.hosts import layouts
from tithe.hosts.base import Crops
from tithe.hosts.crops import first_slot


def anyres(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """LLaVA-NeXT and OneVision: a base crop and a mosaic, packed by the model itself; newline tokens score lowest."""
    base, config = model.base_model, model.config
    count = sys.modules[type(base).__module__].image_size_to_num_patches
    images = inputs["image_sizes"]
    groups = inputs.get("batch_num_images")
    split = [True] * len(images) if groups is None else [n == 1 for n in groups.tolist() for _ in range(n)]
    found, start = [], 0
    for size, image, mosaic in zip(sizes, images, split, strict=True):
        crops = count(image, config.image_grid_pinpoints, config.vision_config.image_size) if mosaic else 1
        pack = _packer(model, image[None], inputs)
        found.append(
            Crops(
                size,
                None,
                slice(start, start + crops),
                to_tokens=_scored(pack, first_slot(model, inputs)),
                layout=layouts.mosaic(pack, crops, _columns(config, image), _tower_grid(config)),
            )
        )
        start += crops
    return found


def sampled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """LLaVA-OneVision's videos: every frame a crop, halved by the model's pooling; one newline token ends a clip."""
    first, frames = first_slot(model, inputs), inputs["pixel_values_videos"].shape[1]
    pool = model.base_model.apply_pooling
    grid = tuple(math.ceil(side / 2) for side in _tower_grid(model.config))

    def to_tokens(patches: Tensor) -> Tensor:
        pooled = pool(patches[:, first:, None])[..., 0].flatten()
        return torch.cat([pooled, (2 * pooled.min() - pooled.max())[None]])

    return [
        Crops(
            size,
            None,
            slice(n * frames, (n + 1) * frames),
            to_tokens=to_tokens,
            layout=layouts.clip(frames, (grid[0], grid[1]), behind=1),
        )
        for n, size in enumerate(sizes)
    ]


def _packer(model: Any, image_sizes: Tensor, inputs: dict[str, Any]) -> layouts.Pack:
    """Return the model's own packing of ``[crops, patches, d]``, newlines ``[d]`` included."""
    pack = model.base_model.pack_image_features
    named = {
        name: inputs.get(name) or getattr(model.config, name)
        for name in ("vision_feature_select_strategy", "vision_aspect_ratio")
        if name in inspect.signature(pack).parameters
    }

    def packed(patches: Tensor, newline: Tensor) -> Tensor:
        rows: Tensor = pack([patches], image_sizes, image_newline=newline, **named)[0][0]
        return rows

    return packed


def _scored(pack: layouts.Pack, first: int) -> Callable[[Tensor], Tensor]:
    """Return how a score per patch is packed, newlines lowest."""
    return lambda patches: pack(patches[:, first:, None], (2 * patches.min() - patches.max())[None])[:, 0]


def _columns(config: Any, image: Tensor) -> int:
    """Return how many crops stand side by side in the mosaic of a picture of size ``image``."""
    _, width = select_best_resolution(image.tolist(), config.image_grid_pinpoints)
    return int(width) // int(config.vision_config.image_size)


def _tower_grid(config: Any) -> tuple[int, int]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side
