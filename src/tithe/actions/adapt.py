"""Adapt to a stream of images: remember some, let them be attended to, and let them speak on the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tithe.selections.reservoir import Reservoir, Seen, nearest
from tithe.types import Saving, Selection


class Replies(Protocol):
    """What the model said of a batch of images, and what the run remembers of those before."""

    logits: Tensor
    memory: dict[str, Any]

    @property
    def cls(self) -> Tensor:
        """The CLS token of each image after each block, ``[B, L, d]``."""
        ...


class Hosts(Protocol):
    """A block about to attend: ``cls [B, d]`` is its CLS token, ``guest [B, d]`` a token that is attended to there."""

    memory: dict[str, Any]
    layer: int
    guest: Tensor | None

    @property
    def cls(self) -> Tensor:
        """The CLS token of each image as it enters the block, ``[B, d]``."""
        ...


@dataclass(frozen=True)
class Anchor:
    """The mean class token of that remembered class which is most like the image's own is attended to in the block.

    Once every class holds ``least`` images; it is the token after the block before.
    """

    least: int
    saving: Saving = "none"

    def apply(self, state: Hosts, selection: Selection | None) -> None:
        """Invite it."""
        reservoir = state.memory.get("reservoir")
        if not isinstance(reservoir, Reservoir) or state.layer < 1:
            return
        anchors = reservoir.anchors(state.layer - 1, state.memory["classes"], self.least)
        state.guest = None if anchors is None else nearest(anchors, state.cls)


@dataclass(frozen=True)
class Adapt:
    """Add ``weight`` times what the reservoir and the image itself tell of the classes to its logits, then keep it.

    All images of a batch read the reservoir as it was before it; they enter it in order.
    """

    size: int
    scale: float
    weight: float
    sharpness: float
    saving: Saving = "none"

    def apply(self, state: Replies, selection: Selection | None) -> None:
        """Correct and remember."""
        held = state.memory.get("reservoir", Reservoir(self.size))
        logits = state.logits.float()
        classes = state.memory["classes"] = logits.shape[-1]
        surprise = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        images = [
            (int(row.argmax()), Seen(cls, float(entropy)))
            for row, cls, entropy in zip(logits, state.cls, surprise, strict=True)
        ]
        told = [held.add(*image).told(image[1].cls, classes, self.scale, self.sharpness) for image in images]
        state.logits = (logits + self.weight * torch.stack(told)).to(state.logits.dtype)
        for image in images:
            held = held.add(*image)
        state.memory["reservoir"] = held
