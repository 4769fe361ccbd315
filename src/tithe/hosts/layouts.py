"""Where image tokens come from: their part (crop, thumbnail, frame), and their row and column in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tithe.hosts.base import Layout

Pack = Callable[[Tensor, Tensor], Tensor]
Grid = tuple[int, int]


def single(grid: Grid | None, tokens: int, tile: bool = False) -> Layout:
    """One crop, along its sequence where it has no raster."""
    return Layout(_raster(grid or (1, tokens)), (grid or (1, tokens),), tile=tile)


def clip(frames: int, grid: Grid, behind: int = 0) -> Layout:
    """The frames of a video one after the other, and tokens of none ``behind`` them."""
    one = _raster(grid)
    origin = torch.cat([one + torch.tensor([frame, 0.0, 0.0]) for frame in range(frames)])
    none = torch.full((behind, 3), torch.nan)
    return Layout(torch.cat([origin, none]), (grid,) * frames, clip=True)


def mosaic(pack: Pack, crops: int, columns: int, grid: Grid) -> Layout:
    """A base view and a mosaic of crops, ``columns`` side by side, each of ``grid``, packed as the model does.

    The places on the whole mosaic go through ``pack``, so unpadding and resizing are the model's; a token that was
    resized out of several patches is of the part where their middle lies.
    """
    height, width = grid
    rows, cols = _raster(grid)[:, 1:].unbind(-1)
    found = []
    for crop in range(crops):
        top, left = divmod(crop - 1, columns) if crop else (0, 0)
        found.append(torch.stack([torch.full_like(rows, float(crop > 0)), rows + top * height, cols + left * width], 1))
    packed = pack(torch.stack(found), torch.full((3,), torch.nan))
    near, row, col = packed.unbind(-1)
    inside = near > 0
    down = torch.where(inside, (row / height + 0.5 / height).floor(), 0.0)
    right = torch.where(inside, (col / width + 0.5 / width).floor(), 0.0)
    part = torch.where(inside, 1 + down * columns + right, near)
    origin = torch.stack([part, row - down * height, col - right * width], -1)
    return Layout(
        origin,
        (grid,) * crops,
        whole=0 if crops > 1 else None,
        cells=(None, *(divmod(n, columns) for n in range(crops - 1))),
    )


def _raster(grid: Grid) -> Tensor:
    height, width = grid
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, cols], -1).view(-1, 3).float()
