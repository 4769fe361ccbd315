"""tomesd's side of merging."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tomesd.merge import bipartite_soft_matching_random2d
from torch import Tensor

from benchmarks.peers.serve import serve
from benchmarks.peers.workers.merging import Merging

Closures = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Tomesd(Merging):
    """One destination in every block of ``block`` tokens: its first, since nothing is drawn at random here.

    The tokens of each pair are swapped beforehand, so that the first of a block one by two is the one at an odd slot.
    """

    def prepare(self, joins: int, block: tuple[int, int]) -> None:
        """Swap."""
        self.joins, (self.high, self.wide) = joins, block
        self.swap = torch.arange(self.metric.shape[1]) ^ 1
        self.metric, self.hidden = self.metric[:, self.swap], self.hidden[:, self.swap]

    def match(self) -> Closures:
        """Find partners."""
        side = round(self.metric.shape[1] ** 0.5)
        return bipartite_soft_matching_random2d(self.metric, side, side, self.wide, self.high, self.joins, no_rand=True)

    def merge(self, matched: Closures) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Merge."""
        return matched[0](self.hidden), matched[1]

    def unmerge(self, merged: tuple[Tensor, Callable[[Tensor], Tensor]]) -> Tensor:
        """Unmerge."""
        return merged[1](merged[0])

    def ordered(self, tokens: Tensor) -> Tensor:
        """Swap back."""
        return tokens[:, self.swap]


if __name__ == "__main__":
    serve(Tomesd().jobs())
