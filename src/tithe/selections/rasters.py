"""Where the tokens of each part of what is seen stand: frame by frame, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.selections.grid import grid_of
from tithe.types import Tokens


def rasters(tokens: Tokens) -> list[Tensor]:
    """Return for each part ``[h, w]``: the places of its tokens among those presented.

    Raises:
        Refused: the tokens of a part are no full raster (padding was cut off, or crops were resized together).
    """
    if tokens.origin is None:
        return [torch.arange(tokens.cols.shape[-1], device=tokens.cols.device).view(grid_of(tokens))]
    parts, found = tokens.parts, []
    for part in range(1 + int(parts.max())):
        places = (parts == part).nonzero()[:, 0]
        where = tokens.origin[places, 1:].long()
        height, width = (where.amax(0) + 1).tolist() if len(places) else (0, 0)
        cells = where[:, 0] * width + where[:, 1]
        if len(places) != height * width or len(cells.unique()) != len(places):
            raise Refused(f"Part {part} of what is seen is no full raster of tokens: give frames in one crop each.")
        found.append(places[cells.argsort()].view(height, width))
    return found


def frames_of(tokens: Tokens) -> Tensor:
    """Return ``[F, h, w]``: the places of the tokens of every frame.

    Raises:
        Refused: parts of different shapes are no frames of one video.
    """
    found = rasters(tokens)
    shapes = {tuple(one.shape) for one in found}
    if len(shapes) > 1:
        raise Refused(f"Parts of shapes {sorted(shapes)} are no frames of one video: give pictures of one size.")
    return torch.stack(found)


def apart(tokens: Tokens) -> Tensor:
    """Return ``[n]``: the live tokens of no part, such as newlines."""
    return (tokens.parts < 0) & tokens.valid[0, 0]
