"""What the demonstrations of the visual modules share: batches of canvases as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tithe.bench.tasks import canvas
from tithe.bench.tasks.canvas import Scene, Split


def scenes(seed: Sequence[int], rows: int, split: Split, distinct: bool = True) -> list[Scene]:
    """Draw ``rows`` canvases; the same for the same ``seed``."""
    rng = np.random.default_rng(seed)
    return [canvas.scene(rng, split, distinct) for _ in range(rows)]


def pixels(drawn: Sequence[Scene]) -> Tensor:
    """Their images as float32 ``[B, 3, 48, 48]`` from -1 to 1."""
    return torch.from_numpy(np.stack([one.image for one in drawn])).permute(0, 3, 1, 2) / 127.5 - 1


def patch_digits(drawn: Sequence[Scene]) -> Tensor:
    """The digit on every patch, int64 ``[B, 144]``, ``canvas.EMPTY`` where there is none."""
    return torch.from_numpy(np.stack([canvas.patch_labels(one)[0] for one in drawn])).flatten(1)
