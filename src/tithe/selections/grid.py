"""Choices by place on the grid of image tokens: evenly spaced points, and blocks to be joined."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.types import Selection, Tokens

Grid = tuple[int, int]


def even_points(count: int, grid: Grid) -> list[int]:
    """Return ``count`` places spread evenly over ``grid``, in raster order.

    They lie on as many rows as make their distances alike along rows and columns; where ``count`` does not divide
    evenly, rows differ by one point. Every point is in the middle of its share of the row.
    """
    height, width = grid
    lines = min(max(round(math.sqrt(count * height / width)), math.ceil(count / width)), height, count)
    found = []
    for line in range(lines):
        row = (2 * line + 1) * height // (2 * lines)
        points = (line + 1) * count // lines - line * count // lines
        found += [row * width + (2 * point + 1) * width // (2 * points) for point in range(points)]
    return found


def coarse(count: int, grid: Grid) -> Grid:
    """Return the smaller grid of at most ``count`` cells, of about the same shape as ``grid``."""
    height, width = grid
    rows = min(max(int(math.sqrt(count * height / width)), 1), height, count)
    cols = min(count // rows, width)
    return min(count // cols, height) if cols == width else rows, cols


def blocks(small: Grid, grid: Grid) -> tuple[list[int], list[int]]:
    """Return the cell of ``small`` in which each place of ``grid`` lies, and the middle place of each cell."""
    (rows, cols), (height, width) = small, grid
    cell = [(row * rows // height) * cols + col * cols // width for row in range(height) for col in range(width)]
    middle = [
        (_first(i, rows, height) + _first(i + 1, rows, height)) // 2 * width
        + (_first(j, cols, width) + _first(j + 1, cols, width)) // 2
        for i in range(rows)
        for j in range(cols)
    ]
    return cell, middle


def _first(part: int, parts: int, total: int) -> int:
    return -(-part * total // parts)


@dataclass(frozen=True)
class EvenPoints:
    """The budget, spread evenly over the grid of each image (along the sequence where there is none)."""

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select by place; ``score [1, 1, n]`` is not read."""
        grid = grid_of(tokens)
        keep = torch.zeros_like(tokens.valid)
        keep[..., even_points(int(self.budget.count(tokens.seen)[0]), grid)] = True
        return Selection(keep & tokens.valid, tokens.cols)


@dataclass(frozen=True)
class Blocks:
    """Cut the grid of each image into at most ``budget`` blocks; each block's middle token takes in the others."""

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select by place; ``score [1, 1, n]`` is not read."""
        grid = grid_of(tokens)
        cell, middle = blocks(coarse(int(self.budget.count(tokens.seen)[0]), grid), grid)
        place = torch.tensor(middle, device=tokens.cols.device)[torch.tensor(cell, device=tokens.cols.device)]
        own = place == torch.arange(len(cell), device=place.device)
        return Selection(
            own.expand_as(tokens.valid), tokens.cols, torch.where(own, -1, place).expand(tokens.cols.shape)
        )


def grid_of(tokens: Tokens) -> Grid:
    """Return the grid of the image whose tokens these are; a single row where it has none."""
    return tokens.grids[0] if tokens.grids else (1, tokens.cols.shape[-1])
