"""What a picture seen whole, in small, says of the crops that show it in large."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from tithe.errors import Refused
from tithe.types import Part

TINY = 1e-8  # keeps the authors' shares of GlobalCom2 from a division by zero


def whole_view(parts: Sequence[Part]) -> int | None:
    """Return the number of the part that shows the whole picture in small; None where the picture has no crops."""
    return next((number for number, part in enumerate(parts) if part.whole), None)


def cells(parts: Sequence[Part], whole: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the numbers of the crops beside the ``whole``, and the row and column of each in their mosaic."""
    crops = [number for number in range(len(parts)) if number != whole]
    found = [cell for number in crops if (cell := parts[number].cell) is not None]
    if len(found) < len(crops):
        raise Refused("The host does not say where the crops of a picture lie in it.")
    return crops, found


def regions(grid: tuple[int, int], places: Sequence[tuple[int, int]]) -> Tensor:
    """Return ``[h w]``: which crop, at which of ``places``, shows in large each place of a thumbnail."""
    height, width = grid
    rows, columns = (1 + max(along) for along in zip(*places, strict=True))
    number = torch.zeros(rows, columns, dtype=torch.long)
    for crop, (row, column) in enumerate(places):
        number[row, column] = crop
    down = (torch.arange(height) // max(height // rows, 1)).clamp(max=rows - 1)
    right = (torch.arange(width) // max(width // columns, 1)).clamp(max=columns - 1)
    return number[down][:, right].flatten()


def bands(grid: tuple[int, int], crops: int) -> Tensor:
    """Return ``[h w]``: the flattened raster in as many runs of equal length as there are ``crops``."""
    count = grid[0] * grid[1]
    return torch.arange(count) * crops // count


def emphasis(scores: Tensor, temperature: float) -> Tensor:
    """Return how densely each crop is kept, relative to the whole, ``[crops]`` with mean 1.

    ``scores [crops]``, what the thumbnail says of each, become shares by a softmax; a crop is kept by as much more than
    the others as its share lies above theirs on average. (GlobalCom2, arXiv:2501.05179.)
    """
    raised = ((scores.double() - scores.double().max()) / temperature).exp()
    share = raised / (raised.sum() + TINY)
    return 1 + share - share.mean()


def enlarged(view: Tensor, grid: tuple[int, int], places: Tensor, size: tuple[int, int], n: int) -> Tensor:
    """Return ``[n]``: the thumbnail's scores ``view [h w]`` at the ``places`` of a mosaic of ``size``, 0 elsewhere."""
    large = interpolate(view.view(1, 1, *grid), size=size, mode="bilinear", align_corners=False)
    return view.new_zeros(n).index_copy_(0, places, large.flatten())


def unit_per_part(score: Tensor, parts: Tensor) -> Tensor:
    """Return ``score [n]`` scaled so that its values in each part have length 1; tokens of no part stay as they are."""
    found = score.clone()
    for part in parts[parts >= 0].unique():
        inside = parts == part
        found[inside] = normalize(score[inside], dim=0)
    return found
