"""Tokens added up at other tokens: shared by the seams that merge."""

from __future__ import annotations

import torch
from torch import Tensor


def joined(rows: Tensor, dest: Tensor, size: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add up tokens at their destinations.

    Args:
        rows: ``[B, n, d]``; dest: ``[B, n]``, -1 for a token that joins none.
        size: ``[B, n]`` patches in each token, None for 1 each; without weights they weigh the mean.
        weight: ``[B, 1, n]`` the share that each token brings, itself included; None for the mean.

    Returns:
        The tokens ``[B, n, d]`` and the size of each; those that joined another are left as they were.
    """
    own = torch.arange(dest.shape[1], device=dest.device).expand_as(dest)
    place = torch.where(dest >= 0, dest, own)
    size = torch.ones_like(rows[..., 0], dtype=torch.float32) if size is None else size
    sizes = torch.zeros_like(size).scatter_add_(1, place, size)
    share = size / sizes.gather(1, place).clamp(min=1e-9) if weight is None else weight[:, 0].float()
    total = torch.zeros_like(rows, dtype=torch.float32)
    total.scatter_add_(1, place[..., None].expand_as(rows), rows.float() * share[..., None])
    stays = (dest < 0)[..., None]
    return torch.where(stays, total.to(rows.dtype), rows), sizes
