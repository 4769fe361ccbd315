"""How much a picture has changed since the last one, patch by patch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

GREY = (0.299, 0.587, 0.114)


def changed(now: Tensor, before: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return ``[..., h w]``: the mean absolute change in grey of every patch.

    Args:
        now, before: pictures ``[..., 3, H, W]`` as the vision tower is given them; grid: patches ``(h, w)`` of each.
    """
    weight = torch.tensor(GREY, device=now.device)[:, None, None]
    grey = ((now.float() - before.float()) * weight).sum(-3).abs()
    size = (grey.shape[-2] // grid[0], grey.shape[-1] // grid[1])
    return avg_pool2d(grey.flatten(0, -3)[:, None], size).view(*grey.shape[:-2], -1)
