"""How patches of the vision tower become image tokens, family by family: the same grouping as each connector's."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tithe.hosts import layouts
from tithe.hosts.base import Crops

CLS_TOWERS = ("clip_vision_model", "internvl_vision")


def single(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """LLaVA 1.5: one crop an image, one token a patch. A tower over packed images of any size is not read."""
    if inputs.get("image_sizes") is not None:
        return [Crops(size) for size in sizes]
    first = _first(model, inputs)
    read = inputs.get("vision_feature_layer") or model.config.vision_feature_layer
    read = [read] if isinstance(read, int) else read

    def entering(n: int) -> Callable[[Any], Tensor]:
        return lambda output: torch.cat([output.hidden_states[layer][n, first:] for layer in read], -1)

    return [
        Crops(
            size,
            _square(size),
            slice(n, n + 1),
            to_tokens=lambda patches: patches[0, first:],
            entering=entering(n),
            connect=model.base_model.multi_modal_projector,
            layout=layouts.single(_square(size), size),
        )
        for n, size in enumerate(sizes)
    ]


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
                to_tokens=_scored(pack, _first(model, inputs)),
                layout=layouts.mosaic(pack, crops, _columns(config, image), _tower_grid(config)),
            )
        )
        start += crops
    return found


def sampled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """LLaVA-OneVision's videos: every frame a crop, halved by the model's pooling; one newline token ends a clip."""
    first, frames = _first(model, inputs), inputs["pixel_values_videos"].shape[1]
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


def merged(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """Qwen2-VL and Qwen3-VL: one packed sequence, each token the mean of consecutive patches."""
    unit = model.config.vision_config.spatial_merge_size
    return _spans(sizes, inputs["image_grid_thw"], unit, lambda grid: lambda patches: _means(patches, unit))


def merged_clip(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """The same, of videos: a part for every pair of frames that the tower takes together."""
    return merged(model, sizes, {**inputs, "image_grid_thw": _video_grid(inputs)})


def windowed_clip(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """Qwen2.5-VL's videos, as its pictures."""
    return windowed(model, sizes, {**inputs, "image_grid_thw": _video_grid(inputs)})


def windowed(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """Qwen2.5-VL: the same, in the order of the tower's windows, which is undone."""
    tower, unit = model.get_encoder("image"), model.config.vision_config.spatial_merge_size
    order: Callable[..., tuple[Tensor, Any]] = sys.modules[type(tower).__module__].get_vision_window_index

    def wound(grid: Tensor) -> Tensor:
        return order(grid, spatial_merge_size=unit, window_size=tower.window_size, patch_size=tower.patch_size)[0]

    def unwound(grid: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda patches: _means(patches, unit)[wound(grid).argsort().to(patches.device)]

    def order_of(grid: Tensor) -> Tensor:
        return (wound(grid[None])[:, None] * unit**2 + torch.arange(unit**2)).flatten()

    grids = inputs["image_grid_thw"]
    found = _spans(sizes, grids, unit, unwound)
    return [replace(crop, order=order_of(grid)) for crop, grid in zip(found, grids, strict=True)]


def tiled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """InternVL: every tile an image of its own, patches joined by the model's pixel shuffle."""
    first, ratio = _first(model, inputs), model.config.downsample_ratio

    def to_tokens(patches: Tensor) -> Tensor:
        side = math.isqrt(patches.shape[1] - first)
        return model.base_model.pixel_shuffle(patches[:1, first:].reshape(1, side, side, 1), ratio).mean(-1).flatten()

    return [
        Crops(
            size,
            _square(size),
            slice(n, n + 1),
            to_tokens=to_tokens,
            layout=layouts.single(_square(size), size, tile=True),
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

    return [Crops(each, _square(each), slice(n, n + 1), to_tokens=to_tokens) for n in range(sum(sizes) // each)]


def pooled(model: Any, sizes: list[int], inputs: dict[str, Any]) -> list[Crops]:
    """Gemma3: every crop an image of its own, patches averaged by the model's pooling."""
    pool = model.base_model.multi_modal_projector.avg_pool

    def to_tokens(patches: Tensor) -> Tensor:
        side = math.isqrt(patches.shape[1])
        return pool(patches[:1].reshape(1, 1, side, side)).flatten()

    return [Crops(size, _square(size), slice(n, n + 1), to_tokens=to_tokens) for n, size in enumerate(sizes)]


def _first(model: Any, inputs: dict[str, Any]) -> int:
    """Return the first slot of the tower that becomes a token: 1 where the CLS token is left out."""
    given = inputs.get("vision_feature_select_strategy")
    return int((given or model.config.vision_feature_select_strategy) == "default")


def _square(size: int) -> tuple[int, int] | None:
    side = math.isqrt(size)
    return (side, side) if side * side == size else None


def _means(patches: Tensor, unit: int) -> Tensor:
    return patches.reshape(-1, unit * unit).mean(-1)


def _spans(
    sizes: list[int], grids: Tensor, unit: int, grouping: Callable[[Tensor], Callable[[Tensor], Tensor]]
) -> list[Crops]:
    found, start = [], 0
    for size, grid in zip(sizes, grids, strict=True):
        frames, height, width = grid.tolist()
        span = slice(start, start + frames * height * width)
        raster = (frames * height // unit, width // unit)
        shape = (height // unit, width // unit)
        layout = layouts.clip(frames, shape) if frames > 1 else layouts.single(shape, size)
        found.append(Crops(size, raster, span=span, to_tokens=grouping(grid[None]), layout=layout))
        start = span.stop
    return found


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


def _video_grid(inputs: dict[str, Any]) -> Tensor:
    grid: Tensor = inputs["video_grid_thw" if "video_grid_thw" in inputs else "image_grid_thw"]
    return grid
