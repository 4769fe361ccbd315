"""How far tokens look back, and how much later tokens look at them: one streamed pass over the attention rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.types import RowBlock


@dataclass(frozen=True)
class Rhythm:
    """Per query head: ``span`` and ``reach [B, Hkv, G, T]``, each row's mean distance in tokens, plain and cut off at
    ``clip``; ``echo [B, Hkv, G, n]``, what each key receives from queries ``near`` to ``far`` tokens later (None: all).
    """

    clip: int
    near: int
    far: int | None
    name: str = "rhythm"
    lasting: bool = False

    def start(self, like: Tensor, shape: tuple[int, int, int, int, int]) -> dict[str, Tensor]:
        """Begin at zero."""
        rows, heads, group, steps, held = shape
        row = torch.zeros(rows, heads, group, steps, device=like.device)
        return {"span": row, "reach": row.clone(), "echo": row.new_zeros(rows, heads, group, held)}

    def fold(self, state: dict[str, Tensor], probs: Tensor, rows: RowBlock) -> None:
        """Take in the rows of a block."""
        distance = (rows.query_cols[:, :, None] - rows.key_cols[:, 0, None]).clamp(min=0)
        band = distance >= self.near
        if self.far is not None:
            band = band & (distance <= self.far)
        block = slice(rows.start, rows.stop)
        state["span"][..., block] = torch.einsum("bhgrm,brm->bhgr", probs, distance.float())
        state["reach"][..., block] = torch.einsum("bhgrm,brm->bhgr", probs, distance.clamp(max=self.clip).float())
        state["echo"][..., : probs.shape[-1]] += torch.einsum("bhgrm,brm->bhgm", probs, band.float())


def by_span(span: Tensor, among: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the ``share`` of heads that look nearest and farthest, ``[B, k]`` each, at least one.

    Args:
        span: ``[B, heads, T]``: mean distance of each row.
        among: ``[B, T]``: the rows that count.
    """
    weight = among[:, None].float()
    mean = (span * weight).sum(-1) / weight.sum(-1).clamp(min=1)
    order = mean.argsort(dim=-1, stable=True)
    count = max(1, int(share * order.shape[-1]))
    return order[:, :count], order[:, -count:]


def of_heads(score: Tensor, heads: Tensor) -> Tensor:
    """Return ``[B, T]``: the mean of ``score [B, heads, T]`` over the chosen ``heads [B, k]`` of each row."""
    return score.gather(1, heads[..., None].expand(-1, -1, score.shape[-1])).mean(1)


def onlookers(valid: Tensor, near: int, far: int | None) -> Tensor:
    """Return ``[B, T]``: how many live tokens stand ``near`` to ``far`` places after each one of ``valid [B, T]``."""
    rank = valid.cumsum(-1)
    after = rank[:, -1:] - rank
    return ((after if far is None else after.clamp(max=far)) - near + 1).clamp(min=0)
