"""What a stream of images has shown: the class tokens of sure and unlike ones, and what they say of the next."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


@dataclass(frozen=True)
class Seen:
    """One image: its class token after each block ``[L, d]``, and how unsure the model was of it."""

    cls: Tensor
    entropy: float


@dataclass
class Reservoir:
    """At most ``size`` images of each class predicted, those of low entropy and unlike each other."""

    size: int
    images: dict[int, list[Seen]] = field(default_factory=dict)

    def add(self, label: int, image: Seen) -> Reservoir:
        """Return the reservoir with one more image; of too many that of highest entropy plus likeness leaves."""
        held = [*self.images.get(label, []), image]
        if len(held) > self.size:
            unit = normalize(torch.stack([one.cls.float().mean(0) for one in held]), dim=-1)
            alike = unit @ unit.T
            others = (alike.sum(1) - alike.diagonal()) / (len(held) - 1)
            worst = int((torch.tensor([one.entropy for one in held]) + others.cpu()).argmax())
            held.pop(worst)
        held.sort(key=lambda one: one.entropy)
        return Reservoir(self.size, {**self.images, label: held})

    def anchors(self, block: int, classes: int, least: int) -> Tensor | None:
        """Return ``[K, d]``: the mean class token of each class after ``block``, None before all have ``least``."""
        if len(self.images) < classes or any(len(held) < least for held in self.images.values()):
            return None
        return torch.stack(
            [torch.stack([one.cls[block] for one in self.images[k]]).mean(0) for k in sorted(self.images)]
        )

    def told(self, cls: Tensor, classes: int, scale: float, sharpness: float) -> Tensor:
        """Return ``[classes]``: how like the images held of each class this one is.

        ``exp(-sharpness (1 - a))`` summed over them, where a is the mean over the blocks of the cosine of class tokens
        ``cls [L, d]``, block l of L weighing ``exp(l / (L - 1) / scale)``.
        """
        depth = torch.linspace(0, 1, len(cls), device=cls.device)
        weight = (depth / scale).softmax(0)
        out = torch.zeros(classes, device=cls.device)
        for label, held in self.images.items():
            for one in held:
                alike = (cosine_similarity(cls.float(), one.cls.float(), dim=-1) * weight).sum()
                out[label] += torch.exp(-sharpness * (1 - alike))
        return out


def nearest(anchors: Tensor, tokens: Tensor) -> Tensor:
    """Return ``[B, d]``: for each of ``tokens [B, d]`` the one of ``anchors [K, d]`` of highest cosine."""
    unit = normalize(tokens.float(), dim=-1) @ normalize(anchors.float(), dim=-1).T
    return anchors[unit.argmax(-1)].to(tokens.dtype)
