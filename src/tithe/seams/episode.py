"""What lasts from one control step to the next, and what a step shows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from tithe.errors import Refused
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.types import Depth, Tower, layer_at

Asks = Literal["actions", "text"]


@dataclass(frozen=True)
class Past:
    """How a ``Need("past", layer)`` is gathered: whose attention to the prompt, in the last ``window`` control steps.

    ``actions``: of the expert's action tokens, over all its forwards; ``text``: of the prompt's words.
    """

    asks: Asks
    window: int = 1


@dataclass
class Episode:
    """Attention to the prompt ``[B, T]`` of past steps, newest last; pictures and features of the step before.

    ``change [B, L]`` is how much each layer changed its tokens in the first step, ``skipped [B, L]`` which do not run
    since, where a method asks for it.
    """

    step: int = 0
    past: dict[tuple[Asks, int], list[Tensor]] = field(default_factory=dict)
    pixels: Tensor | None = None
    features: Tensor | None = None
    change: Tensor | None = None
    skipped: Tensor | None = None

    def close(self, seen: dict[tuple[Asks, int], Tensor], windows: dict[tuple[Asks, int], int]) -> None:
        """End a control step that has shown ``seen``."""
        for key, attention in seen.items():
            self.past[key] = [*self.past.get(key, []), attention][-windows[key] :]
        self.step += 1


class PolicyEvidence(Evidence):
    """Evidence of a control step. ``features [B, n, d]`` are those of the tokens presented.

    ``step`` counts the control steps of the episode before this one. At the encoder ``pixels`` and ``before`` are the
    pictures ``[B, cameras, 3, H, W]`` of this step and of the last one (None in the first), ``place [B, n]`` the column
    of each token in the prompt (-1 for a camera that is none).
    """

    def __init__(
        self,
        episode: Episode,
        layers: dict[tuple[Tower, int], LayerEvidence],
        total: int,
        features: Tensor,
        pixels: Tensor | None = None,
        place: Tensor | None = None,
    ) -> None:
        super().__init__(layers, None, {"text": total}, features=features)
        self._episode, self._total = episode, total
        self.step, self.before, self.change = episode.step, episode.pixels, episode.change
        self.pixels, self.place = pixels, place

    def past(self, asks: Asks, layer: Depth) -> list[Tensor]:
        """Return attention to the prompt ``[B, T]`` in past control steps, newest last; fewer early in an episode."""
        return self._episode.past.get((asks, layer_at(layer, self._total)), [])

    def same_prompt(self, like: Tensor) -> None:
        """Refuse a prompt of another shape than that of the steps before."""
        for attention in (steps[-1] for steps in self._episode.past.values() if steps):
            if attention.shape != like.shape:
                raise Refused("The prompt changed its shape within an episode: call run.reset() when a new one begins.")
