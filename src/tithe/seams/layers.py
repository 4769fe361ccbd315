"""Between layers: tokens leave the stream before layer k, and every later layer is told in its own terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import Refused
from tithe.seams.ahead import look
from tithe.seams.merging import joined
from tithe.seams.stream import Stream, Waiting
from tithe.seams.transitions import passage_of, watch
from tithe.types import DEAD, Selection, Step

if TYPE_CHECKING:
    from tithe.flow import Run


class LayerSeam:
    """A pre-hook on every layer of the text tower: fires the steps of the layer, then slices what follows."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._handles = [
            layer.register_forward_pre_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(run.host.layers)
        ]
        for index, layer in enumerate(run.host.layers):
            if run.plan.asks("transitions", index):
                self._handles += watch(run, index, layer)

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            stream = self.run.stream
            if stream is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if self.run.probing:
                self.run.counter.linear(index, hidden.shape[0], hidden.shape[1], 0)
                return None
            if self.run.phase == "decode":
                self.run.counter.linear(index, hidden.shape[0], hidden.shape[1], stream.width)
                return None
            given = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            state = StreamState(self.run, stream, index, module, hidden, given)
            self.run.before_layer(index, state)
            self.run.counter.linear(index, hidden.shape[0], stream.cols.shape[1], stream.width)
            passage = passage_of(self.run, index, state.hidden)
            if passage is not None:
                stream.passages[index] = passage
            if stream.index is None:
                return None
            if args:
                return (state.hidden, *args[1:]), state.arguments
            return args, {**state.arguments, "hidden_states": state.hidden}

        return before


class StreamState:
    """What an action at a layer may change: who flows on, as what, and what the layers below hold.

    ``hidden [B, T, d]`` are the tokens that flow, as they enter the layer.
    """

    def __init__(
        self, run: Run, stream: Stream, layer: int, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        self.stream, self.layer, self.hidden = stream, layer, hidden
        self._run, self._module, self._kwargs = run, module, kwargs
        self._cache = run.layers_of_cache()

    @property
    def arguments(self) -> dict[str, Any]:
        """What else the layer is given, of the tokens that flow."""
        return self._kwargs if self.stream.index is None else sliced(self._kwargs, self.stream.index)

    def look(self, step: Step) -> bool:
        """Take the evidence of the layer itself, before it runs, where ``step`` asks for it; say whether it does."""
        windows = [
            need.window or 0 for need in step.needs if need.kind == "queries" and need.layer is None and not need.before
        ]
        if not windows:
            return False
        held = next((layer for layer in self._cache if layer.index == self.layer), None)
        found = look(self._run, self._module, self.hidden, self.arguments, held, max(windows))
        self.stream.evidence["text", self.layer] = found
        return True

    def drop(self, selection: Selection) -> None:
        """Let only the kept tokens flow into this layer and those above."""
        index = selection.index()[:, 0]
        self.stream.cut(index)
        self.hidden = take(self.hidden, index)

    def merge(self, selection: Selection, proportional: bool) -> None:
        """Add every token with a destination up there (their mean, or the shares given), and let those kept flow on."""
        if proportional:
            raise Refused("A text layer cannot weigh a token by the number of those merged into it.")
        if selection.dest is not None:
            dest = torch.where(selection.keep, -1, selection.dest)[:, 0]
            self.hidden, _ = joined(self.hidden, dest, None, selection.weight)
        self.drop(selection)

    def set_aside(self, selection: Selection) -> None:
        """Let only the kept tokens flow on; others that have a destination wait until ``scatter``."""
        stream = self.stream
        if stream.waiting is not None:
            raise Refused("Two methods set tokens aside between the same layers; attach them one at a time.")
        own = torch.arange(selection.keep.shape[-1], device=selection.keep.device).expand_as(selection.keep)
        dest = own if selection.dest is None else selection.dest
        waits = (~selection.keep & stream.valid[:, None] & (dest >= 0) & (dest != own))[:, 0]
        leader = torch.where(waits, dest[:, 0], own[:, 0])
        stream.waiting = Waiting(stream.slots, stream.cols, stream.kind, self.hidden, waits, leader)
        self.drop(selection)

    def scatter(self) -> None:
        """Let the tokens that wait flow again, each changed by what the token it waited for has gained since.

        One whose token was dropped meanwhile does not come back.
        """
        stream, was = self.stream, self.stream.waiting
        if was is None:
            return
        stream.waiting = None
        slots, n = stream.slots, stream.width
        place = torch.full((len(slots), n + 1), -1, device=slots.device)
        every = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        place.scatter_(1, torch.where(slots >= 0, slots, n), every)
        lead = place.gather(1, was.slots.gather(1, was.leader).clamp(min=0))
        back = was.waits & (lead >= 0)
        gained = take(self.hidden, lead) - take(was.hidden, was.leader)
        all_slots = torch.cat([slots, torch.where(back, was.slots, -1)], 1)
        order = all_slots.argsort(-1)[:, -int((all_slots >= 0).sum(-1).max()) :]
        self.hidden = take(torch.cat([self.hidden, was.hidden + gained], 1), order)
        cols = torch.cat([stream.cols, torch.where(back, was.cols, DEAD)], 1).gather(1, order)
        kind = None
        if stream.kind is not None and was.kind is not None:
            kind = torch.cat([stream.kind, was.kind], 1).gather(1, order)
        stream.restore(all_slots.gather(1, order), cols, kind)

    def evict_below(self, selection: Selection) -> None:
        """Let the layers below this one hold, of this forward's tokens, only those kept here and those that wait."""
        waiting = self.stream.waiting
        for layer in self._cache:
            if layer.store is None or layer.index >= self.layer:
                continue
            cols = layer.store.view().cols
            stay = selection.hit(cols) | (cols < self.stream.past)
            if waiting is not None:
                stay = stay | Selection(waiting.waits[:, None], waiting.cols[:, None]).hit(cols)
            layer.evict(stay)


def take(block: Tensor, index: Tensor) -> Tensor:
    """Gather ``block [B or 1, T, ...]`` at ``index [B, k]`` (dead places give slot 0)."""
    place = index.clamp(min=0)
    block = block.expand(index.shape[0], *block.shape[1:])
    shape = (*place.shape, *(1 for _ in block.shape[2:]))
    return block.gather(1, place.view(shape).expand(*place.shape, *block.shape[2:]))


def sliced(kwargs: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """Slice a layer's position arguments and the rows of its mask; columns are gathered where they are used."""
    out = dict(kwargs)
    embeddings = out.get("position_embeddings")
    if embeddings is not None:
        out["position_embeddings"] = tuple(
            torch.stack([take(part, index) for part in t]) if t.dim() == 4 else take(t, index) for t in embeddings
        )
    positions = out.get("position_ids")
    if positions is not None:
        out["position_ids"] = (
            torch.stack([take(part, index) for part in positions]) if positions.dim() == 3 else take(positions, index)
        )
    mask = out.get("attention_mask")
    if mask is not None and mask.dim() == 4:
        rows = mask.expand(index.shape[0], *mask.shape[1:])
        place = index.clamp(min=0)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
        out["attention_mask"] = rows.gather(2, place)
    return out
