"""The text tower under the attention seam: what is stored, seen, observed and fired at each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.seams.attention import Tapped
from tithe.seams.cache import CacheLayer
from tithe.seams.evidence import LayerEvidence
from tithe.seams.rows import streamed
from tithe.seams.stores import View
from tithe.seams.stores.base import gathered
from tithe.seams.stream import Stream, by_column, visible
from tithe.types import Reducer, Selection

if TYPE_CHECKING:
    from tithe.flow import Run


class TextTap:
    """Attention of the text tower. Steps fire through ``run``; all state lives in the cache layers and the stream."""

    def __init__(self, run: Run, tapped: Tapped | None = None) -> None:
        self.run = run
        self.tapped = tapped

    def attend(
        self, index: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to what the layer holds, then observe and fire."""
        run, stream = self.run, self.run.stream
        layer: CacheLayer | None = getattr(key, "layer", None)
        scaling = kwargs.pop("scaling", None) or query.shape[-1] ** -0.5
        softcap = kwargs.get("softcap")
        steps = query.shape[2]
        if layer is None or layer.store is None:
            view = View(key, value, stream.cols[:, None], stream.valid[:, None])
            ragged = False
        else:
            ragged = layer.store.ragged
            view = None if ragged else layer.store.view()
        chosen = stream.plan.get(index) if steps == 1 and layer is not None else None
        reducers = run.plan.reducers(index, run.phase)
        weights = None
        if chosen is not None and layer is not None:
            view = _subset(layer.store.view() if view is None else view, chosen)
        results: dict[str, dict[str, Tensor]] = {}
        if reducers or (chosen is None and view is not None and softcap is not None and not view.valid.all()):
            view = layer.store.view() if view is None and layer is not None and layer.store is not None else view
            assert view is not None
            out, results = self._streamed(query, view, mask, stream, scaling, reducers, softcap)
            held = view.keys.shape[2]
        elif view is None and layer is not None and layer.store is not None:
            shown = None if mask is None else _columns(mask, stream)[:, 0]
            out = layer.store.attend(query, scaling, shown)  # type: ignore[attr-defined]
            held = layer.store.length
        else:
            assert view is not None
            own = self._mask(view, mask, stream, query, whole=chosen is None)
            assert self.tapped is not None
            out, weights = self.tapped.run_own(
                module, query, view.keys, view.values, own, scaling=scaling, **kwargs
            )
            held = view.keys.shape[2]
        run.counter.attention(query, held, stream.width, run.reach(layer))
        self._observe(index, layer, view, query, mask, stream, scaling, softcap, results, chosen is not None)
        return out, weights

    def _mask(self, view: View, mask: Tensor | None, stream: Stream, query: Tensor, whole: bool) -> Tensor | None:
        """Return the mask for ``view``: the model's own, gathered at the columns held where it does not line up."""
        steps, held = query.shape[2], view.keys.shape[2]
        shared = view.cols.shape[1] == 1
        if mask is not None and whole and shared and mask.shape[-1] == held and mask.shape[-2] == steps:
            return mask
        if mask is None and ((steps == 1 and view.valid.all()) or (steps == held and stream.whole)):
            if steps == 1 or self.tapped is None or self.tapped.own == "sdpa":
                return None
        shown = view.valid[:, :, None] if mask is None and steps == 1 else visible(mask, view.cols, stream) & view.valid[:, :, None]
        if not stream.whole:
            shown = shown | ~stream.valid[:, None, :, None]
        if not shared:
            shown = shown.repeat_interleave(query.shape[1] // shown.shape[1], 1)
        return shown.expand(-1, -1, steps, -1)

    def _streamed(
        self,
        query: Tensor,
        view: View,
        mask: Tensor | None,
        stream: Stream,
        scaling: float,
        reducers: tuple[Reducer, ...],
        softcap: float | None,
    ) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        steps, held = query.shape[2], view.keys.shape[2]
        aligned = mask is None and view.cols.shape[1] == 1 and bool(view.valid.all()) and stream.whole
        allowed = None
        if not (aligned and (steps == 1 or steps == held)):
            allowed = visible(mask, view.cols, stream) & view.valid[:, :, None]
            allowed = allowed | ~stream.valid[:, None, :, None]
        live = None if stream.whole else stream.valid
        return streamed(
            query, view.keys, view.values, scaling, stream.cols, view.cols, allowed, live, reducers, softcap
        )

    def _observe(
        self,
        index: int,
        layer: CacheLayer | None,
        view: View | None,
        query: Tensor,
        mask: Tensor | None,
        stream: Stream,
        scaling: float,
        softcap: float | None,
        results: dict[str, dict[str, Tensor]],
        partial: bool,
    ) -> None:
        run = self.run
        if layer is not None and layer.store is not None:
            for reducer in run.plan.reducers(index, run.phase):
                if reducer.lasting:
                    total = results[reducer.name]["sum"]
                    before = layer.store.side(reducer.name)
                    layer.store.set_side(reducer.name, total if before is None else before + total)
        window = run.plan.window(index)
        observed = self._last(query, mask, stream, window) if window else {}
        if layer is not None and run.phase == "prefill" and run.plan.fires("attention", "prefill", index):
            remember(layer, observed, scaling, softcap, window or 0)
            layer.memory["kind"] = _kinds(layer, stream)
        if run.plan.evidence(index) and not partial:
            held = view if view is not None else layer.store.view()  # type: ignore[union-attr]
            stream.evidence["text", index] = LayerEvidence(
                view=held,
                scaling=scaling,
                softcap=softcap,
                side=layer.store.side if layer is not None and layer.store is not None else lambda name: None,
                results=results,
                **observed,
            )
        run.after_attention(index, layer)
        if layer is not None:
            layer.trim()

    def _last(self, query: Tensor, mask: Tensor | None, stream: Stream, window: int) -> dict[str, Tensor]:
        """Return the last ``window`` live queries of each row, with what each may see by original column."""
        steps = query.shape[2]
        take = min(window, steps)
        if stream.whole:
            place = torch.arange(steps - take, steps, device=query.device).expand(query.shape[0], take)
            live = torch.ones_like(place, dtype=torch.bool)
        else:
            order = torch.where(stream.valid, torch.arange(steps, device=query.device), -1).sort(-1).values
            place = order[:, steps - take :]
            live = place >= 0
            place = place.clamp(min=0)
        rows, heads, _, dim = query.shape
        queries = query.gather(2, place[:, None, :, None].expand(rows, heads, take, dim))
        cols = stream.cols.gather(1, place)
        if mask is None:
            every = torch.arange(stream.end, device=query.device)
            shown = (every <= cols[..., None])[:, None]
        else:
            width = mask.shape[-1]
            picked = mask.expand(rows, 1, -1, -1).gather(2, place[:, None, :, None].expand(rows, 1, take, width))
            shown = _columns(picked, stream)
        return {"queries": queries, "query_cols": cols, "live": live, "shown": shown}


def _columns(mask: Tensor, stream: Stream) -> Tensor:
    """Return ``mask [B, 1, T, local]`` by original column: ``[B, 1, T, end]``."""
    if stream.local is None:
        return mask
    every = torch.arange(stream.end, device=mask.device, dtype=torch.int32)
    return by_column(mask, every.expand(stream.cols.shape[0], 1, -1), stream)


def _kinds(layer: CacheLayer, stream: Stream) -> Tensor:
    """Return the kind of every original column up to here, ``[B, end]`` int8 (0 where unknown)."""
    kinds = torch.zeros(stream.cols.shape[0], stream.end + 1, dtype=torch.int8, device=stream.cols.device)
    if "kind" in layer.memory:
        old = layer.memory["kind"]
        kinds[:, : old.shape[1]] = old
    if stream.kind is not None:
        kinds.scatter_(1, stream.cols.clamp(max=stream.end).long(), stream.kind.to(torch.int8))
    return kinds[:, : stream.end]


def remember(layer: CacheLayer, observed: dict[str, Tensor], scaling: float, softcap: float | None, window: int) -> None:
    """Keep the last observed queries of a prefill that may go on in further chunks."""
    memory = layer.memory
    if observed and "queries" in memory:
        queries = torch.cat([memory["queries"], observed["queries"]], 2)[:, :, -window:]
        cols = torch.cat([memory["query_cols"], observed["query_cols"]], 1)[:, -window:]
        live = torch.cat([memory["live"], observed["live"]], 1)[:, -window:]
        older, newer = memory["shown"], observed["shown"]
        blank = older.new_zeros(*older.shape[:3], newer.shape[3] - older.shape[3])
        shown = torch.cat([torch.cat([older, blank], 3), newer], 2)[:, :, -window:]
        observed = {"queries": queries, "query_cols": cols, "live": live, "shown": shown}
    memory.update({name: tensor.clone() for name, tensor in observed.items()})
    layer.scaling, layer.softcap = scaling, softcap


def recall(layer: CacheLayer) -> LayerEvidence:
    """Return the evidence of a finished prefill from what the layer remembers."""
    assert layer.store is not None
    kept = {name: layer.memory.get(name) for name in ("queries", "query_cols", "live", "shown")}
    return LayerEvidence(
        view=layer.store.view(), scaling=layer.scaling, softcap=layer.softcap, side=layer.store.side, **kept
    )


def forget(layer: CacheLayer) -> None:
    """Free what was remembered for the end of the prefill."""
    for name in ("queries", "query_cols", "live", "shown"):
        layer.memory.pop(name, None)


def _subset(view: View, chosen: Selection) -> View:
    """Return the tokens of ``view`` that ``chosen`` (of another layer) keeps, and always the newest one."""
    hit = chosen.hit(view.cols) & view.valid
    hit[..., -1] |= view.valid[..., -1]
    return gathered(view, hit)
