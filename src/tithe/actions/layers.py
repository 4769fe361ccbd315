"""Leave layers out, and use what a part of the action head gave before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Deep(Protocol):
    """The layers of a model that acts, once they were seen at work."""

    def skip(self, selection: Selection) -> None:
        """Leave the layers that are not kept out."""
        ...


class Repeats(Protocol):
    """A model that is attached to."""

    def share(self, interval: int) -> None:
        """Run the parts of the action head in one of ``interval`` denoising steps."""
        ...


@dataclass(frozen=True)
class SkipLayers:
    """The tokens chosen from are layers: those that are not kept do not run."""

    saving: Saving = "real"

    def apply(self, state: Deep, selection: Selection) -> None:
        """Skip the others."""
        state.skip(selection)


@dataclass(frozen=True)
class ShareRounds:
    """Attention and MLP of the action head are computed in one of ``interval`` denoising steps."""

    interval: int
    saving: Saving = "real"

    def apply(self, state: Repeats, selection: Selection) -> None:
        """Share what was computed."""
        state.share(self.interval)
