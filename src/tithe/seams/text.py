"""The text tower under the attention seam: what is stored, seen, observed and fired at each layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import Refused
from tithe.seams import prompt, virtual
from tithe.seams.attention import Tapped
from tithe.seams.cache import CacheLayer
from tithe.seams.evidence import LayerEvidence
from tithe.seams.observe import last_queries, original_columns, remember
from tithe.seams.reading import Reading, closed, grouped
from tithe.seams.rows import streamed
from tithe.seams.sparse import Given, Reader
from tithe.seams.stores import Store, View
from tithe.seams.stores.base import attending, within_window
from tithe.seams.stream import Stream, visible, windowed
from tithe.types import Reducer

if TYPE_CHECKING:
    from tithe.flow import Run

Results = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Call:
    """One call of a layer's attention: the new queries, the model's own mask, and where the keys are."""

    index: int
    module: nn.Module
    query: Tensor
    mask: Tensor | None
    stream: Stream
    layer: CacheLayer | None
    fresh: View
    scaling: float
    softcap: float | None
    rest: dict[str, Any]
    limited: View | None = None

    def part(self, start: int, stop: int, whole: View) -> Call:
        """The queries ``start:stop`` as a call of their own, which holds no key behind them (of ``whole``)."""
        stream = self.stream.part(start, stop)
        if self.store is not None and attending(self.store):
            limited = whole._replace(valid=whole.valid & (whole.cols < stream.end))
        else:
            limited = View(*(block[:, :, : block.shape[2] - self.steps + stop] for block in whole))
        mask = self.mask[:, :, start:stop] if self.mask is not None else None
        return replace(self, query=self.query[:, :, start:stop], mask=mask, stream=stream, limited=limited)

    @property
    def store(self) -> Store | None:
        """What the layer holds, this forward's tokens included; None without a cache."""
        return self.layer.store if self.layer is not None else None

    @property
    def steps(self) -> int:
        """The number of queries."""
        return self.query.shape[2]

    def view(self) -> View:
        """Everything attended to, in the padded layout."""
        if self.limited is not None:
            return self.limited
        return self.store.view() if self.store is not None else self.fresh


class TextTap:
    """Attention of the text tower. Steps fire through ``run``; all state lives in the cache layers and the stream."""

    tapped: Tapped

    def __init__(self, run: Run) -> None:
        self.run = run

    def attend(
        self,
        index: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to what the layer holds, then observe and fire."""
        stream = self.run.stream
        assert stream is not None
        scaling = kwargs.pop("scaling", None) or query.shape[-1] ** -0.5
        layer: CacheLayer | None = getattr(key, "layer", None)
        window = kwargs.get("sliding_window")
        if window and stream.local is not None and not stream.renumbered:
            mask = windowed(mask, stream, window)
        fresh = View(key, value, stream.cols[:, None], stream.valid[:, None])
        call = Call(index, module, query, mask, stream, layer, fresh, scaling, kwargs.get("softcap"), kwargs)
        if layer is not None and layer.fresh:
            layer.fresh = False
            self.run.store_made(index, layer)
        leader = virtual.leaders(stream, layer)
        if leader is not None:
            out, weights = self._virtual(call, leader), None
            results: Results = {}
        elif layer is not None and self.run.plan.fires("query", self.run.phase, index):
            out, weights = self._chosen(call)
            results = {}
        else:
            out, weights, held, results = self._attend(call)
            self._count(call, held)
        self._observe(call, results)
        self.run.after_attention(index, layer)
        if layer is not None:
            layer.trim()
        return out, weights

    def _count(self, call: Call, held: int) -> None:
        width = 0 if self.run.probing else call.stream.width
        self.run.counter.attention(call.query, held, width, self.run.reach(call.layer, call.stream))

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None, int, Results]:
        """Return the output, the weights (eager only), the number of keys read, and the reductions."""
        store, chosen = call.store, call.stream.plan.get(call.index)
        reducers = self.run.plan.reducers(call.index, self.run.phase)
        own = bool(reducers) or (store is not None and attending(store))
        if own and call.rest.get("s_aux") is not None:
            raise Refused("This model's attention has learned sinks (s_aux), which only its own implementation serves.")
        if reducers and chosen is not None and call.steps == 1:
            raise Refused(
                f"Layer {call.index}: one method reads every row of attention, another lets the layer read only some "
                "tokens; attach them one at a time."
            )
        if chosen is not None and call.steps == 1:
            return *self._read(call, chosen), {}
        if reducers:
            view = call.view()
            out, results = self._streamed(call, view, reducers)
            return out, None, view.keys.shape[2], results
        if store is not None and attending(store):
            shown = None if call.mask is None else original_columns(call.mask, call.stream)[:, 0]
            out = store.attend(call.query, call.scaling, shown, call.softcap)
            return out, None, getattr(store, "read", None) or store.length, {}
        return *self._read(call, None), {}

    def _chosen(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Let steps choose what is read, a block of queries at a time, each after the blocks before it."""
        if self.run.plan.reducers(call.index, self.run.phase):
            raise Refused(
                f"Layer {call.index}: one method reads every row of attention, another chooses what is read; attach "
                "them one at a time."
            )
        assert call.layer is not None and call.store is not None
        if hasattr(call.store, "host"):
            raise Refused(
                f"Layer {call.index}: one method holds tokens in the machine's memory, another chooses from all; "
                "attach them one at a time."
            )
        size = call.steps if call.steps == 1 else self.run.plan.rows(call.index) or call.steps
        parts, whole = [], call.view()
        for stop in range((call.steps - 1) % size + 1, call.steps + 1, size):
            start = max(0, stop - size)
            part = call if size >= call.steps else call.part(start, stop, whole)
            view = part.view()
            if call.layer.window:
                view = within_window(view, part.stream.first, call.layer.window)
            found = LayerEvidence(
                view=view,
                scaling=call.scaling,
                queries=part.query,
                query_cols=part.stream.cols,
                live=None if part.stream.whole else part.stream.valid,
                shown=None if part.mask is None else original_columns(part.mask, part.stream),
                softcap=call.softcap,
                side=part.store.side if part.store is not None else _no_side,
                store=part.store if not call.layer.window else None,
                memory=call.layer.memory,
                turn=lambda x, by: self.run.rotary.turn(x, by, call.index),
            )
            state = self.run.before_read(call.index, call.layer, part.stream, found, call.steps - stop)
            if state.reader is not None:
                out, weights = self._sparse(part, state.reader, found), None
            else:
                out, weights, held = self._read(part, state.reading)
                self._count(part, held)
            parts.append(out)
        return (parts[0], weights) if len(parts) == 1 else (torch.cat(parts, 1), None)

    def _virtual(self, call: Call, leader: Tensor) -> Tensor:
        """Attend over every column, those of virtual tokens included; average the outputs of each token."""
        if call.rest.get("sliding_window"):
            raise Refused("Virtual tokens are not served where layers see a sliding window only; pass virtual=False.")

        def turn(x: Tensor, by: Tensor) -> Tensor:
            return self.run.rotary.turn(x, by, call.index)

        full = virtual.expanded(call.query, call.view(), call.stream, leader, turn, masked=self.tapped.own != "sdpa")
        given = (call.module, full.query, full.keys, full.values, full.mask)
        out, _ = self.tapped.run_own(*given, scaling=call.scaling, **call.rest)
        held = full.keys.shape[2]
        self.run.counter.attention(full.query, held, call.stream.width, self.run.reach(call.layer, call.stream))
        return full.queries.averaged(out, call.steps)

    def _sparse(self, call: Call, reader: Reader, found: LayerEvidence) -> Tensor:
        """Let a method's reader attend, and count what it spent."""
        if call.rest.get("s_aux") is not None:
            raise Refused("This model's attention has learned sinks (s_aux), which only its own implementation serves.")
        given = Given(call.query, call.view(), call.stream.cols, found.live, found.shown, call.scaling, call.softcap)
        read = reader(given)
        self.run.counter.pairs(call.query, read.pairs, call.stream.width, self.run.reach(call.layer, call.stream))
        self.run.trace.tally(read.counts)
        return read.out

    def _read(self, call: Call, reading: Reading | None) -> tuple[Tensor, Tensor | None, int]:
        """Attend to the tokens of ``reading``, or to all; return output, weights and the number of keys read."""
        view = call.view() if reading is None else reading.of(call.view())
        if reading is not None and reading.close:
            view = closed(view, call.stream.first, self.run.rotary, call.index)
        mask = self._mask(call, view, whole=reading is None)
        plain = self.tapped.own == "sdpa" and call.rest.get("s_aux") is None
        if call.steps == 1 and plain and not call.query.is_cuda:
            return grouped(call.query, view, mask, call.scaling), None, view.keys.shape[2]
        out, weights = self.tapped.run_own(
            call.module, call.query, view.keys, view.values, mask, scaling=call.scaling, **call.rest
        )
        return out, weights, view.keys.shape[2]

    def _mask(self, call: Call, view: View, whole: bool) -> Tensor | None:
        """Return the mask for ``view``: the model's own, gathered at the columns held where it does not line up."""
        mask, stream, steps = call.mask, call.stream, call.steps
        held, shared = view.keys.shape[2], view.cols.shape[1] == 1
        gapped = stream.index is not None if call.layer is None else call.layer.gapped
        if mask is not None and whole and shared and not gapped and mask.shape[-2:] == (steps, held):
            return mask
        if mask is None and steps == 1:
            if bool(view.valid.all()):
                return None
            shown = view.valid[:, :, None]
        elif mask is None and steps == held and stream.whole and self.tapped.own == "sdpa":
            return None
        else:
            shown = visible(mask, view.cols, stream) & view.valid[:, :, None]
        if not stream.whole:
            shown = shown | ~stream.valid[:, None, :, None]
        if not shared:
            shown = shown.repeat_interleave(call.query.shape[1] // shown.shape[1], 1)
        return shown.expand(-1, -1, steps, -1)

    def _streamed(self, call: Call, view: View, reducers: tuple[Reducer, ...]) -> tuple[Tensor, Results]:
        """Attend and reduce in one pass over blocks of rows."""
        stream = call.stream
        ordered = call.mask is None and view.cols.shape[1] == 1 and bool(view.valid.all()) and stream.whole
        allowed = None
        if not ordered or call.steps not in (1, view.keys.shape[2]):
            allowed = visible(call.mask, view.cols, stream) & view.valid[:, :, None]
            allowed = allowed | ~stream.valid[:, None, :, None]
        live = None if stream.whole else stream.valid
        return streamed(
            call.query,
            view.keys,
            view.values,
            call.scaling,
            stream.cols,
            view.cols,
            allowed,
            live,
            reducers,
            call.softcap,
        )

    def _observe(self, call: Call, results: Results) -> None:
        """Keep what later steps of this forward, or the end of the prefill, will read."""
        plan, phase, index, layer = self.run.plan, self.run.phase, call.index, call.layer
        store = call.store
        for reducer in plan.reducers(index, phase):
            if reducer.lasting and store is not None:
                before, added = store.side(reducer.name), results[reducer.name]["sum"]
                store.set_side(reducer.name, added if before is None else before + added)
        window = plan.window(index)
        seen = last_queries(call.query, call.mask, call.stream, window) if window else None
        if layer is not None and plan.remembers(index, phase):
            remember(layer, seen, call.stream, window)
            layer.scaling, layer.softcap = call.scaling, call.softcap
            prompt.observe(self.run, index, call.query, call.stream, layer)
        if plan.evidence(index) and index not in call.stream.plan:
            call.stream.evidence["text", index] = LayerEvidence(
                view=call.view(),
                scaling=call.scaling,
                queries=seen.queries if seen is not None else None,
                query_cols=seen.cols if seen is not None else None,
                live=seen.live if seen is not None else None,
                shown=seen.shown if seen is not None else None,
                softcap=call.softcap,
                side=store.side if store is not None else _no_side,
                results=results,
                store=store,
                memory=call.layer.memory if call.layer is not None else {},
                passage=call.stream.passages.get(index),
            )


def _no_side(name: str) -> Tensor | None:
    return None
