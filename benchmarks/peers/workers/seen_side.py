"""Tithe's side of attribution: what the last query of the prompt attends to, mean over heads and layers."""

from __future__ import annotations

import torch
from torch import Tensor

import tithe
from benchmarks.peers.serve import serve
from benchmarks.peers.workers.attributing import Attributing
from benchmarks.peers.workers.shared import row


class Seen(Attributing):
    """The scores of a method that is attached for its scores only, averaged over the layers."""

    @torch.no_grad()
    def scores(self, ids: list[int], target: int) -> Tensor:
        """``target`` is not needed: attention comes before the word."""
        with tithe.on(self.model, self.method, level="scores") as run, run.prefill():
            self.model(input_ids=row(ids), use_cache=True, logits_to_keep=1)
        found = [event.scores for event in run.trace.events if event.scores is not None]
        return torch.stack([scores[0].float().mean(0) for scores in found]).mean(0)


if __name__ == "__main__":
    serve(Seen().jobs())
