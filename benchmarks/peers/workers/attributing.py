"""What all sides of attribution do alike: score the tokens of a prompt by what they did for the answer's first word."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.peers.serve import Job, clocked
from benchmarks.peers.workers.shared import trained


class Attributing(ABC):
    """One method at a time, on the trained model."""

    options: dict[str, Any] = {}

    def load(self, folder: str, method: str) -> None:
        """Make the model ready."""
        self.method = method
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = trained(folder, **self.options)
        self.prepare()

    def prepare(self) -> None:  # noqa: B027
        """Make ready what is used for every prompt, where there is any."""

    @abstractmethod
    def scores(self, ids: list[int], target: int) -> Tensor:
        """Return ``[T]``: how much each of ``ids`` mattered to ``target`` coming next."""

    def attribute(self, ids: list[int], target: int) -> float:
        """Return the seconds it takes."""
        found = []
        seconds = clocked(lambda: found.append(self.scores(ids, target)))
        self.found = found[0]
        return seconds

    def last(self) -> list[float]:
        """Return the scores found last."""
        return self.found.tolist()

    def jobs(self) -> dict[str, Job]:
        """Return the jobs by name."""
        return {name: getattr(self, name) for name in ("load", "attribute", "last")}
