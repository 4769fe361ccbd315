"""How much text and image still look at each other inside the language model."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.scores.attention import at_columns
from tithe.seams.evidence import LayerEvidence
from tithe.types import IMAGE, Tokens


def crossing(layer: LayerEvidence, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``, in each row one number: the greater of two shares of attention, mean over the heads.

    The share of what text tokens give that goes to image tokens, and of what image tokens give that goes to text. Text
    is what stands behind the first image token; what is before it (a system prompt) counts in the whole only.
    """
    assert layer.query_cols is not None
    image = tokens.among(IMAGE)
    text = tokens.valid & ~image & (image.cumsum(-1) > 0)
    asking = layer.query_cols[:, None]
    to_image, to_text = (at_columns(flag.float(), tokens.cols, layer.view.cols) for flag in (image, text))
    from_image, from_text = (at_columns(flag.float(), tokens.cols, asking)[:, 0] for flag in (image, text))
    part = torch.zeros(2, len(image), device=image.device)
    whole = torch.zeros_like(part)
    start = 0
    for block in layer.blocks():
        probs = block.mean(2)
        rows = slice(start, start + probs.shape[2])
        for way, (giver, taker) in enumerate(((from_text, to_image), (from_image, to_text))):
            share = giver[:, None, rows, None] * probs
            part[way] += (share * taker[:, :, None]).mean(1).sum((1, 2))
            whole[way] += share.mean(1).sum((1, 2))
        start = rows.stop
    ratio = part / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    return ratio.amax(0)[:, None, None].expand(-1, 1, tokens.cols.shape[-1])
