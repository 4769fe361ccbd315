"""Tokens joined before attention and handed their output after it: a mean one way, a copy the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.types import Selection


@dataclass(frozen=True)
class Slots:
    """Where tokens attend. ``first [B, m]``: the token that a slot begins with; ``alive [B, m]``; ``reads [B, n]``:
    the slot whose output a token gets; ``size [B, m]`` tokens in a slot. Dead slots end the rows that hold fewer."""

    first: Tensor
    alive: Tensor
    reads: Tensor
    size: Tensor
    others: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, selection: Selection) -> Slots | None:
        """Lay out ``selection`` (one for all heads); None where nothing is joined or dropped."""
        assert selection.dest is not None
        keep, dest = selection.keep[:, 0], selection.dest[:, 0].long()
        if bool(keep.all()) and bool((dest < 0).all()):
            return None
        rows, n = keep.shape
        every = torch.arange(n, device=keep.device).expand(rows, n)
        again = keep & (dest == every)
        own = keep.cumsum(-1) - 1
        second = keep.sum(-1, keepdim=True) + again.cumsum(-1) - 1
        gathers = torch.where(again, second, own)
        reads = torch.where(keep, own, gathers.gather(1, dest.clamp(min=0)))
        held = keep.sum(-1) + again.sum(-1)
        first = torch.zeros(rows, int(held.max()), dtype=torch.long, device=keep.device)
        for chosen, place in ((keep, own), (again, second)):
            row, token = chosen.nonzero(as_tuple=True)
            first[row, place[row, token]] = token
        alive = torch.arange(first.shape[1], device=keep.device) < held[:, None]
        row, token = (~keep & (dest >= 0)).nonzero(as_tuple=True)
        target = row * first.shape[1] + reads[row, token]
        size = torch.ones(first.numel(), device=keep.device).index_add_(0, target, torch.ones_like(target).float())
        return cls(first, alive, reads, size.view_as(first), (row * n + token, target))

    def gather(self, x: Tensor) -> Tensor:
        """Return the means ``[B, H, m, d]`` of ``x [B, H, n, d]``."""
        rows, heads, _, dim = x.shape
        flat = x.transpose(1, 2).reshape(rows, -1, heads * dim)
        source, target = self.others
        total = flat.gather(1, self.first[..., None].expand(-1, -1, heads * dim)).flatten(0, 1)
        total.index_add_(0, target, flat.flatten(0, 1)[source])
        mean = total.view(rows, -1, heads * dim) / self.size[..., None].to(x.dtype)
        return mean.unflatten(-1, (heads, dim)).transpose(1, 2)

    def scatter(self, out: Tensor) -> Tensor:
        """Return ``[B, n, H, d]``: the output ``[B, m, H, d]`` of the slot that each token is in."""
        return out.gather(1, self.reads[..., None, None].expand(-1, -1, *out.shape[2:]))

    @property
    def mask(self) -> Tensor | None:
        """Return ``[B, 1, m, m]``: which slots hold tokens, None where all do."""
        if bool(self.alive.all()):
            return None
        return self.alive[:, None, None].expand(-1, 1, self.alive.shape[1], -1)
