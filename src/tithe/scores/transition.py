"""How much the modules of a layer turn and stretch each token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tithe.scores.attention import at_columns
from tithe.seams.transitions import Change, Passage
from tithe.types import DEAD, Tokens


def transition(change: Change, valid: Tensor) -> Tensor:
    """Return ``[B, T]``: output norm over input norm, times the softmax over live tokens of 1 - cosine.

    (Token Transition Variation of one module: TransPrune, arXiv:2507.20630, as in its authors' code.)
    """
    turned = (1 - change.cosine).masked_fill(~valid, -torch.inf).softmax(-1)
    stretched = change.after / change.before.clamp(min=torch.finfo(change.before.dtype).tiny)
    return torch.where(valid, stretched * turned, 0.0)


def variation(passages: Iterable[Passage], tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: transitions of attention and MLP of several layers, summed."""
    total = torch.zeros(tokens.cols.shape, device=tokens.cols.device)
    for passage in passages:
        both = sum(transition(passage.changes[name], passage.valid) for name in ("attention", "mlp"))
        held = torch.where(passage.valid, passage.cols, DEAD)
        total += at_columns(both[:, None], held[:, None], tokens.cols)  # type: ignore[index]
    return total


def normalised(score: Tensor, among: Tensor) -> Tensor:
    """Return ``score [B, 1, n]`` with the sum of those ``among [B, 1, n]`` made 1, others 0."""
    score = torch.where(among, score, 0.0)
    return score / (score.sum(-1, keepdim=True) + 1e-8)
