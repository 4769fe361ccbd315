"""Virtual tokens: one that stands for several columns is attended to, and attends, at each of them.

Rotary positions are rotations, so a key (or query) made at one column is turned to any other exactly: the attention
over the full prompt is had from the tokens that are there, and the outputs at a token's columns are averaged back.
What is saved is all that is not attention (projections, MLP) and the keys and values held; attention itself is over
every column, and its keys are made again at each read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.seams.cache import CacheLayer, owned
from tithe.seams.stores import View
from tithe.seams.stream import Stream
from tithe.types import DEAD, Point

if TYPE_CHECKING:
    from tithe.flow import Run

NAME = "leader"
ALONE: tuple[Point, ...] = ("input", "layer", "query", "attention", "cache", "forward")


class Columns(NamedTuple):
    """Original columns as what holds them shows them: its ``slot [B, n]``, which are ``alive [B, n]``, how far each is
    from the column of that slot (``by [B, n]``), and the columns themselves, ``cols [n]``."""

    slot: Tensor
    alive: Tensor
    by: Tensor
    cols: Tensor

    def of(self, block: Tensor) -> Tensor:
        """Return ``[B, H, n, d]``: ``block [B, H, slots, d]`` at every column."""
        return block.gather(2, self.slot[:, None, :, None].expand(-1, block.shape[1], -1, block.shape[3]))

    def averaged(self, out: Tensor, slots: int) -> Tensor:
        """Return ``[B, slots, H, d]``: the mean of ``out [B, n, H, d]`` over the columns of each slot."""
        place = torch.where(self.alive, self.slot, slots)
        total = out.new_zeros(out.shape[0], slots + 1, *out.shape[2:], dtype=torch.float32)
        total.scatter_add_(1, place[..., None, None].expand_as(out), out.float())
        count = total.new_zeros(total.shape[:2]).scatter_add_(1, place, torch.ones_like(place, dtype=torch.float32))
        return (total / count.clamp(min=1)[..., None, None])[:, :slots].to(out.dtype)


def stand_for(run: Run, row: int, cols: Tensor, leader: Tensor) -> None:
    """Let the columns ``cols [n]`` of ``row`` be read from those of ``leader [n]``, in this forward and after it.

    Raises:
        Refused: positions that are no rotations by one number, or a method that works on the text tower itself.
    """
    stream = run.stream
    assert stream is not None
    if any(run.plan.at(point) for point in ALONE):
        raise Refused(
            "Virtual tokens are read at columns that hold none, and another method works in the language model: "
            "attach them one at a time, or pass virtual=False."
        )
    _ = run.rotary
    layers = run.layers_of_cache()
    memory = owned(run.cache)[0].memory if run.cache is not None and layers else {}
    if stream.leader is None:
        rows, device = stream.cols.shape[0], stream.cols.device
        stream.leader = torch.arange(stream.end, device=device).repeat(rows, 1)
        before = memory.get(NAME)
        if before is not None:
            known = min(before.shape[1], stream.past)
            stream.leader[:, :known] = before[:, :known]
    stream.leader[row, cols] = leader
    if layers:
        memory[NAME] = stream.leader


def leaders(stream: Stream, layer: CacheLayer | None) -> Tensor | None:
    """Return ``[B, columns]``: the column that each one is read from (those beyond: from itself); None for no table."""
    if stream.leader is not None:
        return stream.leader
    first = layer.link.first if layer is not None else None
    return first.memory.get(NAME) if first is not None else None


def columns(cols: Tensor, valid: Tensor, leader: Tensor, start: int, end: int) -> Columns:
    """Return where the original columns ``start:end`` are found among tokens at ``cols, valid [B, slots]``."""
    rows, slots = cols.shape
    every = torch.arange(start, end, device=cols.device)
    found = torch.full((rows, end + 1), -1, dtype=torch.long, device=cols.device)
    place = torch.where(valid, cols.clamp(max=end), end).long()
    found.scatter_(1, place, torch.arange(slots, device=cols.device).expand(rows, -1))
    found[:, end] = -1
    known = min(end, leader.shape[1])
    lead = every.repeat(rows, 1)
    lead[:, : max(0, known - start)] = leader[:, start:known]
    slot = found.gather(1, lead)
    return Columns(slot.clamp(min=0), slot >= 0, every - lead, every)


class Expanded(NamedTuple):
    """A layer's attention over every column: queries, keys, values ``[B, H, n, d]``, the mask, and the way back."""

    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    queries: Columns


def expanded(
    query: Tensor, view: View, stream: Stream, leader: Tensor, turn: Callable[[Tensor, Tensor], Tensor], masked: bool
) -> Expanded:
    """Make the attention of ``query [B, Hq, T, d]`` to ``view`` over all columns; causal, padding hidden.

    ``turn(x [B, H, n, d], by [B, 1, n])`` moves vectors of this layer by positions. ``masked``: make a mask even where
    causality alone says it all.
    """
    if view.cols.shape[1] != 1:
        raise Refused("Virtual tokens are not served where heads hold different tokens.")
    held = columns(view.cols[:, 0], view.valid[:, 0], leader, 0, stream.end)
    asked = columns(torch.where(stream.valid, stream.cols, DEAD), stream.valid, leader, stream.past, stream.end)
    mask = None
    whole = bool(held.alive.all()) and bool(asked.alive.all())
    if not whole or (stream.width > 1 and (masked or stream.past)):
        seen = (held.cols <= asked.cols[:, None]) & held.alive[:, None]
        mask = (seen | ~asked.alive[..., None])[:, None]
    return Expanded(
        turn(asked.of(query), asked.by[:, None]),
        turn(held.of(view.keys), held.by[:, None]),
        held.of(view.values),
        mask,
        asked,
    )
