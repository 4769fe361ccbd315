"""What models answer that give neither text nor classes: the actions of a control loop, the poses of frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tithe.hosts import find

STEPS = 5
DARKER = 0.06


def answer(model: PreTrainedModel, inputs: dict[str, Any], steps: int = STEPS) -> Tensor:
    """Return the actions ``[B, steps, chunk, d]`` of one episode, or the poses ``[B, frames, 9]``.

    An episode shows the same scene ``steps`` times; it grows darker from the last row of pixels upwards.
    """
    if find(model).kind == "vggt":
        return model(**inputs).pose
    return torch.stack([model.sample_actions(**{**inputs, **dimmed(inputs, step)}) for step in range(steps)], 1)


def dimmed(inputs: dict[str, Any], step: int) -> dict[str, Tensor]:
    """Return the pictures of a step: as they are first, then the lower half darker each time."""
    pixels: Tensor = inputs["pixel_values"].clone()
    pixels[..., pixels.shape[-2] // 2 :, :] -= DARKER * step
    return {"pixel_values": pixels}
