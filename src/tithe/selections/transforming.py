"""Which tokens are made, and what of: a matrix from all tokens to those that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.selections.pace import Pace
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens

Form = Literal["prune", "merge", "many"]


@dataclass(frozen=True)
class Transforming:
    """The image tokens that score highest stay, as many as ``pace`` leaves, and become what ``form`` makes of all.

    A column of the matrix says where a token goes: nowhere (``prune``, for those that do not stay), to the one most
    like it of those that stay (``merge``; each of these to itself), or to all of these by the softmax of its likeness
    over ``temperature`` (``many``). A token made is the mean of what comes to it. Other tokens stay as they are.
    """

    pace: Pace
    form: Form
    temperature: float

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``score [B, 1, n]``, and compare by the cosine of ``features [B, n, d]``."""
        live, free = tokens.valid[:, 0], tokens.among(IMAGE)[:, 0]
        count = self.pace.left(tokens)
        stays = highest(score[:, 0].masked_fill(~free, -torch.inf), count[:, None]) & free
        keep = stays | (live & ~free)
        if bool((keep == live).all()):
            return Selection(keep[:, None], tokens.cols)
        flows = self.columns(features, stays)
        apart = (free.sum(-1) > count)[:, None, None]
        itself = torch.eye(live.shape[1], device=live.device).expand_as(flows)
        flows = torch.where(apart & free[:, None], flows, itself * live[:, None])
        mix = flows / flows.sum(-1, keepdim=True).clamp(min=torch.finfo(flows.dtype).tiny)
        return Selection(keep[:, None], tokens.cols, mix=mix)

    def columns(self, features: Tensor, stays: Tensor) -> Tensor:
        """Return ``[B, n, n]``: the share of token j that goes to token i, 0 for an i that does not stay."""
        own = torch.diag_embed(stays.float())
        if self.form == "prune":
            return own
        unit = normalize(features, dim=-1)
        alike = (unit @ unit.mT).masked_fill(~stays[:, :, None], -torch.inf)
        if self.form == "many":
            return (alike / self.temperature).softmax(1)
        nearest = torch.zeros_like(alike).scatter_(1, alike.argmax(1, keepdim=True), 1.0)
        return torch.where(stays[:, None], own, nearest)
