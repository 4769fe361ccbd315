"""How much a token matters to a scan, by what the scan gives for it."""

from __future__ import annotations

from torch import Tensor


def clipped(activations: Tensor, clip: bool = True) -> Tensor:
    """Return ``[B, 1, n]``: ``activations [B, scans, n, channels]`` without what is below 0, mean over the channels.

    Those of several scans are added. ``clip=False`` takes them as they are.
    """
    given = activations.float()
    return (given.clamp(min=0) if clip else given).mean(-1).sum(1, keepdim=True)
