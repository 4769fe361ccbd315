"""The attention that a layer would pay, before it runs: its own front half, stopped where attention begins."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.seams.attention import lent
from tithe.seams.cache import CacheLayer
from tithe.seams.evidence import LayerEvidence
from tithe.seams.observe import last_queries
from tithe.seams.stores import View
from tithe.seams.stores.base import within_window
from tithe.seams.stream import windowed
from tithe.types import DEAD

if TYPE_CHECKING:
    from tithe.flow import Run


class Seen(Exception):
    """The layer has shown its queries and keys."""


class Look:
    """Takes the place of a layer's attention; keeps what it is given, and lets nothing behind it run."""

    def __init__(self, run: Run, held: CacheLayer | None, window: int) -> None:
        self.run, self.held, self.window = run, held, window
        self.found: LayerEvidence | None = None

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
        """Keep queries, keys and mask."""
        stream = self.run.stream
        assert stream is not None
        near = kwargs.get("sliding_window")
        if near and stream.local is not None and not stream.renumbered:
            mask = windowed(mask, stream, near)
        cols = torch.where(stream.valid, stream.cols, DEAD)
        view = View(key, value, cols[:, None], stream.valid[:, None])
        if self.held is not None and self.held.store is not None:
            old = self.held.store.view()
            if self.held.window:
                old = within_window(old, stream.first, self.held.window)
            heads = max(old.cols.shape[1], 1)
            view = View(
                torch.cat([old.keys, key], 2),
                torch.cat([old.values, value], 2),
                torch.cat([old.cols, view.cols.expand(-1, heads, -1)], 2),
                torch.cat([old.valid, view.valid.expand(-1, heads, -1)], 2),
            )
        seen = last_queries(query, mask, stream, self.window)
        self.found = LayerEvidence(
            view=view,
            scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
            queries=seen.queries,
            query_cols=seen.cols,
            live=seen.live,
            shown=seen.shown,
            softcap=kwargs.get("softcap"),
        )
        self._count(query, key)
        raise Seen

    def _count(self, query: Tensor, key: Tensor) -> None:
        """Count the projections of queries, keys and values, which the layer will make once more."""
        rows, heads, steps, dim = query.shape
        width = int(self.run.host.config.hidden_size)
        self.run.trace.flops += 2 * rows * steps * width * dim * (heads + 2 * key.shape[1])


def look(
    run: Run, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any], held: CacheLayer | None, window: int
) -> LayerEvidence:
    """Return what the layer ``module`` would show of ``hidden [B, T, d]``: ``window`` last queries, and all keys."""
    alone = {**kwargs, "past_key_values": None, "use_cache": False}
    tap = Look(run, held, window)
    with lent([module], tap), torch.no_grad(), suppress(Seen):
        module.forward(hidden, **alone)
    assert tap.found is not None
    return tap.found
