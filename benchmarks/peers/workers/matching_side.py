"""Tithe's side of merging."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.serve import serve
from benchmarks.peers.workers.merging import Merging
from tithe.budget import Budget
from tithe.seams.layers import take
from tithe.seams.merging import joined
from tithe.selections.matching import Bipartite
from tithe.types import Selection, Tokens


class Matching(Merging):
    """Partners among the tokens at odd slots for those at even ones."""

    def prepare(self, joins: int, block: tuple[int, int]) -> None:
        """``block`` is theirs: ours splits the tokens alternately along the row whatever it is."""
        rows, count, _ = self.metric.shape
        cols = torch.arange(count, dtype=torch.int32).expand(rows, 1, count)
        live = torch.ones_like(cols, dtype=torch.bool)
        self.tokens = Tokens(cols, live, torch.full((rows,), count))
        self.choose = Bipartite(Budget(count - joins))

    def match(self) -> Selection:
        """Select."""
        return self.choose(None, self.tokens, self.metric)

    def merge(self, matched: Selection) -> tuple[Tensor, Tensor]:
        """Join, and leave out what joined; the places of all tokens among those left come along."""
        keep, dest = matched.keep[:, 0], matched.dest[:, 0]
        whole, _ = joined(self.hidden, dest, None, None)
        index = (~keep).to(torch.int8).argsort(dim=-1, stable=True)[:, : int(keep[0].sum())]
        slot = torch.where(dest >= 0, dest, torch.arange(dest.shape[1]))
        return take(whole, index), (keep.cumsum(-1) - 1).gather(1, slot)

    def unmerge(self, merged: tuple[Tensor, Tensor]) -> Tensor:
        """Give every token the one it is in."""
        return take(*merged)


if __name__ == "__main__":
    serve(Matching().jobs())
