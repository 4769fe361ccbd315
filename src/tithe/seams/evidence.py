"""What the model shows: queries against keys, and streamed rows; lazy, memoised, read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tithe import kernels
from tithe.errors import Refused
from tithe.seams.paging import PageFn, summarised
from tithe.seams.stores.base import Store, View
from tithe.types import Depth, Part, Tower, layer_at

if TYPE_CHECKING:
    from tithe.seams.asking import Prompted
    from tithe.seams.segments import SegmentEvidence
    from tithe.seams.transitions import Passage

BLOCK = 256


@dataclass
class LayerEvidence:
    """One layer in one forward. Probabilities are ``[B, Hkv, G, r, n]`` float32: query heads grouped by key head.

    ``shown`` is ``[B, 1, w, columns]``, the model's own mask of the observed queries by original column; None means
    causal by column, or everything where ``causal`` is False. ``hidden [B, n, d]`` is given at block sites.
    ``memory`` lasts with the cache layer and follows its rows; a method keeps there, under its own name, what its next
    choice builds on. ``turn(x [B, H, n, d], by [B, H or 1, n])`` moves keys or queries to other positions. ``passage``
    says what a text layer made of the tokens of this forward, where a step asks for it.
    """

    view: View
    scaling: float
    queries: Tensor | None = None
    query_cols: Tensor | None = None
    live: Tensor | None = None
    shown: Tensor | None = None
    causal: bool = True
    softcap: float | None = None
    hidden: Tensor | None = None
    bias: Tensor | None = None
    side: Callable[[str], Tensor | None] = lambda name: None
    results: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    store: Store | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    turn: Callable[[Tensor, Tensor], Tensor] | None = None
    passage: Passage | None = None
    _memo: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def keys(self) -> Tensor:
        """Keys held ``[B, Hkv, n, d]``, after RoPE."""
        return self.view.keys

    @property
    def values(self) -> Tensor:
        """Values held ``[B, Hkv, n, d]``."""
        return self.view.values

    @property
    def observed(self) -> Tensor:
        """The observed queries ``[B, Hq, w, d]``."""
        if self.queries is None:
            raise Refused("This step reads queries that it did not ask for: add Need('queries', ...) to it.")
        return self.queries

    def pages(self, size: int, fn: PageFn) -> Tensor:
        """Return ``fn`` of every page of ``size`` keys held, ``[B, Hkv, pages, ...]``; full pages are made once.

        ``fn`` must be the same object every time: a function of a module, not one made on the way.
        """
        return summarised(self.store, self.view, size, fn)

    def probs(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Attention probabilities of observed queries ``start:stop`` (negative counts from the last)."""
        count = self.observed.shape[2]
        start, stop, _ = slice(start, stop).indices(count)
        if (start, stop) not in self._memo:
            self._memo[start, stop] = self._softmax(start, stop)
        return self._memo[start, stop]

    def mass(self) -> Tensor:
        """Return ``[B, Hq, n]``: attention summed over the observed queries, of every query head."""
        if kernels.serve(self.keys) and self.bias is None:
            from tithe.kernels import column_mass

            allowed = self._allowed(0, self.observed.shape[2])
            return column_mass.fused(self.observed, self.keys, allowed, self.scaling, self.softcap)
        return self.probs().sum(3).flatten(1, 2)

    def blocks(self) -> Iterator[Tensor]:
        """Yield probabilities of all observed queries in blocks of rows, none of them kept."""
        for start in range(0, self.observed.shape[2], BLOCK):
            yield self._softmax(start, min(start + BLOCK, self.observed.shape[2]))

    def _softmax(self, start: int, stop: int) -> Tensor:
        keys = self.view.keys
        rows, heads, held, dim = keys.shape
        query = self.observed[:, :, start:stop]
        group = query.shape[1] // heads
        folded = query.reshape(rows, heads, group * (stop - start), dim)
        logits = (folded @ keys.transpose(2, 3)).float().view(rows, heads, group, stop - start, held) * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.bias is not None:
            logits = logits + self.bias[:, :, None].float()
        allowed = self._allowed(start, stop)
        if not self.causal and self.shown is None and bool(allowed.all()):
            return logits.softmax(-1)
        probs = logits.masked_fill(~allowed[:, :, None], torch.finfo(logits.dtype).min).softmax(-1)
        return probs * allowed[:, :, None]

    def _allowed(self, start: int, stop: int) -> Tensor:
        """Return ``[B, H or 1, r, n]``: which keys observed queries ``start:stop`` see, none where they are dead."""
        allowed = self.view.valid[:, :, None].expand(-1, -1, stop - start, -1)
        if self.shown is not None:
            place = self.view.cols.long()
            shown = self.shown[:, :, start:stop].expand(-1, place.shape[1], -1, -1)
            inside = place < shown.shape[-1]
            place = place.clamp(max=shown.shape[-1] - 1)[:, :, None].expand(-1, -1, stop - start, -1)
            allowed = allowed & shown.gather(3, place) & inside[:, :, None]
        elif self.causal and self.query_cols is not None:
            allowed = allowed & (self.view.cols[:, :, None] <= self.query_cols[:, None, start:stop, None])
        if self.live is not None:
            allowed = allowed & self.live[:, None, start:stop, None]
        return allowed


class Evidence:
    """All evidence a step may read: ``here`` is the layer of its site, ``at(layer, tower)`` another it asked for.

    At an encoder site, ``features [1, n, d]`` are the image tokens behind the connector, ``entering`` those before it,
    ``parts`` the crops, frames or pictures they are of, and ``prompt`` the text around them.
    """

    def __init__(
        self,
        layers: dict[tuple[Tower, int], LayerEvidence],
        here: tuple[Tower, int] | None = None,
        counts: dict[Tower, int] | None = None,
        to_tokens: Callable[[Tensor], Tensor] | None = None,
        features: Tensor | None = None,
        entering: Callable[[], Tensor | None] | None = None,
        parts: Callable[[], tuple[Part, ...]] | None = None,
        prompt: Prompted | None = None,
        pixels: Callable[[], Tensor | None] | None = None,
        carried: dict[str, Tensor] | None = None,
        groups: Callable[[], Tensor | None] | None = None,
    ) -> None:
        self._layers = layers
        self._here = here
        self._counts = counts or {}
        self._to_tokens = to_tokens
        self._entering = entering
        self._parts = parts
        self._pixels = pixels
        self._carried = carried or {}
        self._groups = groups
        self.features = features
        self.prompt = prompt
        self.segments: SegmentEvidence | None = None

    @property
    def here(self) -> LayerEvidence:
        """The layer of the step's own site."""
        if self._here is None:
            raise Refused("This step stands at no layer; it reads evidence with at(layer, tower).")
        return self._layers[self._here]

    @property
    def layer(self) -> int:
        """The index of the site's layer."""
        return self._here[1] if self._here is not None else -1

    def at(self, layer: Depth, tower: Tower = "text") -> LayerEvidence:
        """Return the evidence of ``layer`` (negative counts from the end)."""
        index = layer_at(layer, self._counts.get(tower, 0))
        if (tower, index) not in self._layers:
            raise Refused(f"Evidence of {tower} layer {layer} was not asked for, or the tower has not run.")
        return self._layers[tower, index]

    @cached_property
    def entering(self) -> Tensor | None:
        """``[1, n, d]``: image tokens as they enter the connector, None where it joins patches itself."""
        return self._entering() if self._entering is not None else None

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The crops, frames or pictures that the image tokens at hand are of."""
        return self._parts() if self._parts is not None else ()

    @cached_property
    def pixels(self) -> Tensor | None:
        """``[crops, slots, p]``: what the tower was given, in the order of its slots, None where that is not known."""
        return self._pixels() if self._pixels is not None else None

    @cached_property
    def groups(self) -> Tensor:
        """``[n]``: the number of each token's group, equal where patches merged in the vision tower made them equal."""
        found = self._groups() if self._groups is not None else None
        if found is None:
            raise Refused("The host does not say which image tokens show the same patches of its vision tower.")
        return found

    def carried(self, name: str, cols: Tensor) -> Tensor:
        """Return the score that the step which carries ``name`` gave to ``cols [B, 1, n]``, 0 for other tokens."""
        if name not in self._carried:
            raise Refused(f"No step carries {name!r}: no picture has come yet, or its tokens were not scored.")
        held = self._carried[name]
        return held.gather(1, cols[:, 0].long().clamp(max=held.shape[1] - 1))[:, None]

    def to_tokens(self, patches: Tensor) -> Tensor:
        """Turn a score per patch ``[crops, patches]`` into one per image token, ``[1, 1, n]``."""
        if self._to_tokens is None:
            raise Refused("The host does not say how patches of the vision tower become image tokens.")
        return self._to_tokens(patches)[None, None]

    def layers(self, tower: Tower = "text") -> list[LayerEvidence]:
        """Return the evidence of every layer that was asked for, in order."""
        return [self._layers[key] for key in sorted(self._layers) if key[0] == tower]
