"""Tokens at even strides, each for those up to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.narrowed import Stage
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Leaders:
    """Image tokens at even strides from the first, as many as ``stage`` keeps; the others go with the one before them.

    Of n tokens and a budget of k these are the tokens ``0, s, 2s ... (k - 1) s`` with ``s = n // k``, in the order of
    their columns. No score is read. (LVLM_CSP, arXiv:2504.10854, uniform sampling.)
    """

    stage: Stage

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select; ``dest`` names the leader of every other image token."""
        image = tokens.among(IMAGE)
        count = self.stage.count(tokens)[:, None, None]
        rank, held = image.cumsum(-1) - 1, image.sum(-1, keepdim=True)
        stride = held // count.clamp(min=1)
        leads = image & (rank % stride.clamp(min=1) == 0) & (rank < stride * count)
        place = torch.arange(image.shape[-1], device=image.device).expand_as(image)
        dest = torch.where(leads, place, -1).cummax(-1).values
        return Selection(leads | (tokens.valid & ~image), tokens.cols, torch.where(image & ~leads, dest, -1))
