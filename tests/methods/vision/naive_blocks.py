"""The tiny vision transformer written out in float64, one image at a time, for methods that work inside its blocks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from methods.vision.contract import classifier
from torch import Tensor


@dataclass
class Shown:
    """What a block showed: ``probs [H, n, n]``, keys ``[H, n, d]``."""

    probs: Tensor
    keys: Tensor


Between = Callable[[int, Tensor, Tensor, Shown], tuple[Tensor, Tensor]]
Guest = Callable[[int, Tensor], Tensor | None]


@dataclass
class Read:
    """What came out: class logits, and the CLS token after every block ``[L, d]``."""

    logits: Tensor
    cls: Tensor


def no_guest(block: int, cls: Tensor) -> Tensor | None:
    return None


@torch.no_grad()
def by_hand(image: Tensor, between: Between, guest: Guest = no_guest) -> Read:
    """Run ``classifier()`` on one image ``[3, 24, 24]``.

    ``between(block, x, sizes, shown)`` stands between attention and MLP and returns the tokens ``[n, d]`` that go on
    and how many patches each counts as. ``guest(block, cls)``: a token that is attended to in that block and leaves it.
    """
    vit = deepcopy(classifier()).double()
    x = vit.vit.embeddings(image[None].double())[0]
    sizes, cls = torch.ones(len(x), dtype=torch.float64), []
    for index, block in enumerate(vit.vit.layers):
        own, came = block.attention, guest(index, x[0])
        shown = x if came is None else torch.cat([x, came.double()[None]])
        weighed = sizes if came is None else torch.cat([sizes, torch.ones(1, dtype=torch.float64)])
        normed = block.layernorm_before(shown)
        q, k, v = (part(normed).view(len(shown), 4, 8).transpose(0, 1) for part in (own.q_proj, own.k_proj, own.v_proj))
        probs = (q @ k.transpose(1, 2) * 8**-0.5 + weighed.log()).softmax(-1)
        mixed = own.o_proj((probs @ v).transpose(0, 1).reshape(len(shown), 32))
        count = len(x)
        x, sizes = between(index, x + mixed[:count], sizes, Shown(probs[:, :count, :count], k[:, :count]))
        x = x + block.mlp(block.layernorm_after(x))
        cls.append(x[0])
    return Read(vit.classifier(vit.vit.layernorm(x)[0]), torch.stack(cls))
