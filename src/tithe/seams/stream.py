"""What one forward is about: which original columns its tokens are, and what was found out on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tithe.types import DEAD, Tower

if TYPE_CHECKING:
    from tithe.seams.evidence import LayerEvidence
    from tithe.seams.reading import Reading
    from tithe.seams.transitions import Passage


@dataclass(frozen=True)
class Waiting:
    """Tokens set aside before a layer: all that flowed then, who of them waits ``[B, n]``, and for whom.

    ``slots, cols, kind [B, n]`` name them, ``hidden [B, n, d]`` is what they were, ``leader [B, n]`` says at which of
    these places the token stands that each one waits for.
    """

    slots: Tensor
    cols: Tensor
    kind: Tensor | None
    hidden: Tensor
    waits: Tensor
    leader: Tensor


@dataclass
class Stream:
    """The tokens of one forward of the text tower. Set before layer 0; may be cut at the input and at layers.

    ``cols, valid [B, T]`` name the tokens now flowing; ``past`` and ``end`` count original columns before and after
    this forward, ``given [B]`` the live tokens of each row before any cut, ``entered [B]`` those
    that the first layer was given;
    ``local [B, end]`` maps original columns to columns of the model's own mask after an input cut, and
    ``renumbered`` says that positions were then counted anew. ``index [B, T]`` holds, once tokens left between layers,
    the slots of this forward that still flow; ``waiting`` those set aside, ``passages`` what layers made of theirs,
    ``carried [B, end]`` scores that an encoder step left by column, ``leader [B, end]`` the column that each one is
    read from (see ``virtual``).
    """

    cols: Tensor
    valid: Tensor
    past: int
    end: int
    kind: Tensor | None = None
    local: Tensor | None = None
    renumbered: bool = False
    index: Tensor | None = None
    plan: dict[int, Reading] = field(default_factory=dict)
    evidence: dict[tuple[Tower, int], LayerEvidence] = field(default_factory=dict)
    passages: dict[int, Passage] = field(default_factory=dict)
    waiting: Waiting | None = None
    carried: dict[str, Tensor] = field(default_factory=dict)
    leader: Tensor | None = None
    given: Tensor = field(init=False)
    entered: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.given = self.entered = self.valid.sum(-1)

    @property
    def width(self) -> int:
        """The number of original columns of this forward."""
        return self.end - self.past

    @property
    def whole(self) -> bool:
        """Whether no flowing slot is dead."""
        return bool(self.valid.all())

    def part(self, start: int, stop: int) -> Stream:
        """The slots ``start:stop`` of this forward as a forward of their own, after those before them."""
        return replace(
            self,
            cols=self.cols[:, start:stop],
            valid=self.valid[:, start:stop],
            past=self.past + start,
            end=self.past + stop,
            kind=self.kind[:, start:stop] if self.kind is not None else None,
        )

    @property
    def first(self) -> Tensor:
        """The first live column of each row, ``[B]``."""
        return torch.where(self.valid, self.cols, DEAD).amin(-1)

    def shorten(self, index: Tensor) -> None:
        """Go on with the slots ``index [B, k]`` (-1: dead, at the left) of those flowing."""
        place = index.clamp(min=0)
        alive = index >= 0
        self.valid = self.valid.gather(1, place) & alive
        self.cols = torch.where(alive, self.cols.gather(1, place), DEAD)
        if self.kind is not None:
            self.kind = self.kind.gather(1, place)

    def shorten_input(self, index: Tensor) -> None:
        """Shorten before the model has seen the tokens: its mask will be in local coordinates from here."""
        rows, device = self.cols.shape[0], self.cols.device
        self.shorten(index)
        self.entered = self.valid.sum(-1)
        width = self.past + index.shape[1]
        local = torch.full((rows, self.end + 1), width, dtype=torch.long, device=device)
        local[:, : self.past] = torch.arange(self.past, device=device)
        slots = torch.arange(self.past, width, device=device).expand(rows, -1)
        local.scatter_(1, self.cols.clamp(max=self.end).long(), slots)
        local[:, self.end] = width
        self.local = local

    @property
    def slots(self) -> Tensor:
        """The slots of this forward that flow, ``[B, T]``, -1 where one is dead."""
        if self.index is not None:
            return self.index
        return torch.arange(self.cols.shape[1], device=self.cols.device).expand_as(self.cols)

    def cut(self, index: Tensor) -> None:
        """Drop tokens between layers: from here on only the slots ``index [B, k]`` of those flowing flow."""
        slots = self.slots
        self.shorten(index)
        self.index = torch.where(index >= 0, slots.gather(1, index.clamp(min=0)), -1)

    def restore(self, slots: Tensor, cols: Tensor, kind: Tensor | None) -> None:
        """Let other tokens of this forward flow: ``slots [B, k]`` of it (-1: dead), their columns and kinds."""
        self.index, self.valid, self.cols, self.kind = slots, slots >= 0, cols, kind


def by_column(mask: Tensor, cols: Tensor, stream: Stream) -> Tensor:
    """Gather the model's own mask ``[B, 1, T, columns]`` at the original ``cols [B, H, n]``: ``[B, H, T, n]``."""
    place = cols.long()
    if stream.local is not None:
        table = stream.local[:, None].expand(-1, cols.shape[1], -1)
        place = table.gather(2, place.clamp(max=table.shape[-1] - 1))
    rows, heads, _ = cols.shape
    dead = place >= mask.shape[-1]
    place = place.clamp(max=mask.shape[-1] - 1)
    mask = mask.expand(rows, heads, -1, -1)
    seen = mask.gather(3, place[:, :, None].expand(-1, -1, mask.shape[2], -1))
    return seen & ~dead[:, :, None]


def visible(mask: Tensor | None, cols: Tensor, stream: Stream) -> Tensor:
    """Return ``[B, H, T, n]``: which held ``cols`` each flowing query may see, by the model's own mask or causality."""
    if mask is not None:
        return by_column(mask, cols, stream)
    return cols[:, :, None, :] <= stream.cols[:, None, :, None]


def windowed(mask: Tensor | None, stream: Stream, window: int) -> Tensor:
    """Narrow the model's own mask to ``window`` original columns: after an input cut it counts only those left."""
    slots = stream.past + stream.cols.shape[1] if mask is None else mask.shape[-1]
    assert stream.local is not None
    place = stream.local[:, : stream.end].clamp(max=slots)
    cols = torch.full((place.shape[0], slots + 1), DEAD, dtype=torch.int32, device=place.device)
    cols.scatter_(1, place, torch.arange(stream.end, dtype=torch.int32, device=place.device).expand_as(place))
    distance = (stream.cols[:, :, None] - cols[:, None, :slots])[:, None]
    near = (distance < window) | ~stream.valid[:, None, :, None]
    return near & (distance >= 0) if mask is None else mask & near
