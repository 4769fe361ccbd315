"""What both sides of merging do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.serve import Job, clocked

torch.set_num_threads(1)


class Merging(ABC):
    """Jobs: match the tokens of a square picture, merge others by it, give them back."""

    def load(self, side: int, width: int, joins: int, block: tuple[int, int]) -> None:
        """Draw ``metric`` and ``hidden [2, side * side, width]``, the same on both sides."""
        draw = torch.Generator().manual_seed(0)
        self.metric, self.hidden = (torch.randn(2, side * side, width, generator=draw) for _ in range(2))
        self.prepare(joins, block)
        self.matched = self.match()

    @abstractmethod
    def prepare(self, joins: int, block: tuple[int, int]) -> None:
        """Make ready to join ``joins`` tokens with one destination in each ``block`` (rows, columns)."""

    @abstractmethod
    def match(self) -> Any:
        """Find which tokens join which."""

    @abstractmethod
    def merge(self, matched: Any) -> Any:
        """Return the merged tokens and what is needed to give them back."""

    @abstractmethod
    def unmerge(self, merged: Any) -> Tensor:
        """Return ``[2, side * side, width]``: every token the one it is in."""

    def ordered(self, tokens: Tensor) -> Tensor:
        """Return tokens in the order of the picture."""
        return tokens

    def find(self) -> float:
        """Return the seconds of matching."""
        return clocked(self.match)

    def apply(self) -> float:
        """Return the seconds of merging and giving back."""
        return clocked(lambda: self.unmerge(self.merge(self.matched)))

    def result(self, path: str) -> None:
        """Store what merging and giving back make of the tokens."""
        torch.save(self.ordered(self.unmerge(self.merge(self.matched))), path)

    def jobs(self) -> dict[str, Job]:
        """Return the jobs by name."""
        return {name: getattr(self, name) for name in ("load", "find", "apply", "result")}
