"""Choices by place on the grid of image tokens: evenly spaced points, and blocks to be joined."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.per_part import alive_sizes, shared_out
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
    """Cut every picture, crop or frame into blocks, at most ``budget`` together; the middle one takes in its block.

    Tokens of no part, such as the newlines of a mosaic, go.
    """

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select by place; ``score [1, 1, n]`` is not read."""
        parts, sizes = tokens.parts, alive_sizes(tokens)
        wanted = int(self.budget.count(tokens.seen)[0])
        if wanted >= int(tokens.seen[0]):
            return Selection(tokens.valid, tokens.cols, torch.full(tokens.cols.shape, -1, device=parts.device))
        dest = torch.full_like(parts, -1)
        keep = torch.zeros_like(tokens.valid)
        for part, count in enumerate(shared_out(wanted, sizes / sizes.sum().clamp(min=1), sizes).tolist()):
            places = (parts == part).nonzero()[:, 0]
            if count:
                middle = places[_middles(*_raster(tokens, places), count)]
                dest[places] = torch.where(middle == places, -1, middle)
                keep[..., middle] = True
        return Selection(keep & tokens.valid, tokens.cols, dest.expand(tokens.cols.shape))


def _raster(tokens: Tokens, places: Tensor) -> tuple[Tensor, Grid]:
    """Return the place ``[m]`` of each token on the smallest raster that holds them all, and that raster."""
    if tokens.origin is None or tokens.grids is not None:
        return torch.arange(len(places), device=places.device), grid_of(tokens)
    row, col = tokens.origin[places, 1:].round().long().unbind(-1)
    row, col = row - row.min(), col - col.min()
    return row * (int(col.max()) + 1) + col, (int(row.max()) + 1, int(col.max()) + 1)


def _middles(at: Tensor, grid: Grid, count: int) -> Tensor:
    """Return for each of the tokens ``at [m]`` of ``grid`` which of them is the middle of its block, ``[m]``.

    Where the middle of a block is missing, its first token stands in.
    """
    cell, middle = (torch.tensor(one, device=at.device) for one in blocks(coarse(count, grid), grid))
    mine = cell[at]
    number = torch.arange(len(at), device=at.device)
    first = torch.full((len(middle),), len(at), device=at.device).scatter_reduce_(0, mine, number, "amin")
    holder = torch.full((grid[0] * grid[1],), -1, device=at.device)
    holder[at] = number
    stands = torch.where(holder[middle] >= 0, holder[middle], first)
    return stands[mine]


def grid_of(tokens: Tokens) -> Grid:
    """Return the grid of the image whose tokens these are; a single row where it has none."""
    return tokens.grids[0] if tokens.grids else (1, tokens.cols.shape[-1])
