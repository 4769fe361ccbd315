"""Where image tokens lie on their picture: boxes that say which closer tokens a coarse one looks down on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.seams.evidence import Evidence
from tithe.selections.grid import blocks
from tithe.types import Part, Tokens


def boxes(evidence: Evidence, tokens: Tokens, side: int) -> Tensor:
    """Return ``[1, n, 8]``: the box of each token as one looked down on, then as one that looks.

    A box is top, left, bottom, right, the picture going from 0 to 1; all zeros is none. Where a picture has a
    thumbnail, its tokens look and those of the closer crops are looked down on, wherever the mosaic's padding was
    cut off. A picture or frame of one view is its own: the middle token of each block of ``side`` x ``side`` looks at
    its block. Frames stand one below the other.

    Raises:
        Refused: closer crops of which the host does not say where they lie.
    """
    assert tokens.origin is not None
    found = torch.zeros(len(tokens.origin), 8, device=tokens.origin.device)
    parts = evidence.parts
    small, close = [part for part in parts if part.whole], [part for part in parts if not part.whole]
    if not small:
        for below, part in enumerate(parts):
            found[part.places] = _alone(tokens.origin[part.places, 1:], part.grid, side, below)
        return found[None]
    for part in small:
        found[part.places, 4:] = _cells(tokens.origin[part.places, 1:], part.grid)
    places = torch.cat([part.places for part in close])
    at = torch.cat([tokens.origin[part.places, 1:] + _corner(part, len(close)) for part in close])
    rows, cols = (line.mul(1000).round().unique(return_inverse=True) for line in at.unbind(1))
    found[places, :4] = _cells(torch.stack([rows[1], cols[1]], 1), (len(rows[0]), len(cols[0])))
    return found[None]


def looking(boxes: Tensor, tokens: Tokens, parts: Iterable[Part]) -> Tensor:
    """Return ``[1, 1, n]``: 1 for tokens that look, and for those of no part where no mosaic is left to end."""
    looks = boxes[..., 6] > boxes[..., 4]
    if not any(part.whole for part in parts):
        looks = looks | (tokens.parts < 0)
    return looks[:, None].float()


def _corner(part: Part, crops: int) -> Tensor:
    if part.cell is None and crops > 1:
        raise Refused("Crops are compared with their thumbnail by place, and this host does not say where they lie.")
    row, col = part.cell or (0, 0)
    return torch.tensor([row * part.grid[0], col * part.grid[1]], dtype=torch.float32)


def _cells(at: Tensor, grid: tuple[int, int]) -> Tensor:
    size = torch.tensor(grid, dtype=torch.float32, device=at.device)
    return torch.cat([at / size, (at + 1) / size], 1)


def _alone(at: Tensor, grid: tuple[int, int], side: int, below: int) -> Tensor:
    small = (max(grid[0] // side, 1), max(grid[1] // side, 1))
    cell, middle = blocks(small, grid)
    box = torch.cat([_cells(at, grid), torch.zeros(len(at), 4, device=at.device)], 1)
    looks = torch.tensor(middle, device=at.device)
    own = torch.tensor(cell, device=at.device)
    for place in looks.tolist():
        inside = box[own == own[place], :4]
        box[place, 4:] = torch.cat([inside[:, :2].amin(0), inside[:, 2:].amax(0)])
    down = torch.tensor([below, 0.0], device=at.device)
    raised = box + down.repeat(4)
    raised[:, 4:] = torch.where((box[:, 6:7] > box[:, 4:5]), raised[:, 4:], 0.0)
    return raised
