"""Qwen-VL: the patches of all pictures in one packed sequence, joined in squares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tithe.hosts import layouts
from tithe.hosts.base import Crops


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


def _video_grid(inputs: dict[str, Any]) -> Tensor:
    grid: Tensor = inputs["video_grid_thw" if "video_grid_thw" in inputs else "image_grid_thw"]
    return grid


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
