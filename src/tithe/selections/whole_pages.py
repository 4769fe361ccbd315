"""Whole pages of consecutive tokens, the same for all heads: what a server with a paged cache can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.top_k import highest, shared
from tithe.types import DEAD, Selection, Tokens


@dataclass(frozen=True)
class WholePages:
    """The pages of ``size`` tokens whose best tokens score highest, as many as the budget holds, one choice a layer.

    Pages lie as a server lays them: over the live tokens of a row from its first one. A page scores the mean over
    heads of its highest token. Pages with protected tokens stay, and so does the newest page, which still fills; these
    count, so that a row keeps at most its budget, rounded up to whole pages, and never less than they are.
    """

    budget: Budget
    size: int

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, H, n]``."""
        rows, heads, _ = score.shape
        live = tokens.valid.any(1)
        cols = torch.where(tokens.valid, tokens.cols, -1).amax(1)
        start = tokens.pads[:, None] if tokens.pads is not None else 0
        page = torch.where(live, (cols - start) // self.size, 0).long()
        pages = int(page.max()) + 1
        count = shared(self.budget, tokens.seen, tokens)
        wanted = (count + self.size - 1) // self.size
        marked = torch.where(tokens.valid, score, -torch.inf)
        best = torch.full((rows, heads, pages), -torch.inf, device=score.device)
        best.scatter_reduce_(2, page[:, None].expand_as(marked), marked, "amax")
        held = torch.zeros(rows, pages, dtype=torch.bool, device=score.device)
        held = held.scatter_reduce(1, page, live, "amax")
        safe = self.budget.protected(live[:, None], count)[:, 0] | (live & (cols == cols.amax(-1, keepdim=True)))
        must = torch.zeros_like(held).scatter_reduce(1, page, safe, "amax")
        finite = torch.where(held[:, None], best, 0.0).mean(1)
        rank = torch.where(must, torch.inf, torch.where(held, finite, -torch.inf))
        # A window that slid on ends within a page at both sides, so that what fits may touch one page more.
        fits = (live.sum(-1) <= count)[:, None]
        chosen = ((highest(rank, wanted.maximum(must.sum(-1))[:, None]) | fits) & held) | must
        keep = (chosen.gather(1, page) & live)[:, None]
        return Selection(keep & (tokens.cols < DEAD), tokens.cols)
