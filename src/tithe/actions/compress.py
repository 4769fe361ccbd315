"""Compress image tokens: a coarse token asks those beneath it what they show. mPLUG-DocOwl2 (arXiv:2409.03420)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention, silu

from tithe.actions.pool import Rewrites
from tithe.types import Saving, Selection

INNER_EPSILON = 1e-6


@dataclass(frozen=True)
class Compressor:
    """Cross-attention layers, each query reading its own region; then one linear map.

    ``weights`` by name: ``heads``, ``fc`` and ``<layer>.`` followed by ``norm1``, ``normk``, ``query``, ``key``,
    ``value``, ``out``, ``norm2``, ``w1``, ``w2``, ``w3``, ``ffn_ln``, each ``.weight`` and ``.bias``. With none of
    them a query becomes the mean of its region, weighted by the softmax of scaled products of the tokens as they are.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """How many cross-attention layers there are."""
        return sum(name.endswith(".normk.weight") for name in self.weights)

    def __call__(self, queries: Tensor, regions: Tensor, inside: Tensor) -> Tensor:
        """Return ``[m, d]`` from ``queries [m, d]``, ``regions [m, r, d]`` and which of these count, ``[m, r]``."""
        mask = inside[:, None, None]
        if not self.weights:
            query, rows = queries[:, None, None], regions[:, None]
            return scaled_dot_product_attention(query, rows, rows, mask).flatten(1)
        for layer in range(self.layers):
            queries = self._layer(f"{layer}.", queries, regions, mask)
        return self._linear("fc", queries)

    def _layer(self, at: str, queries: Tensor, regions: Tensor, mask: Tensor) -> Tensor:
        queries, regions = self._norm(f"{at}norm1", queries), self._norm(f"{at}normk", regions)
        query = self._heads(self._linear(f"{at}query", queries)[:, None])
        key, value = (self._heads(self._linear(at + name, regions)) for name in ("key", "value"))
        read = scaled_dot_product_attention(query, key, value, mask).flatten(1)
        queries = queries + self._linear(f"{at}out", read)
        normed = self._norm(f"{at}norm2", queries)
        gated = silu(self._linear(f"{at}w1", normed)) * self._linear(f"{at}w3", normed)
        return queries + self._linear(f"{at}w2", self._norm(f"{at}ffn_ln", gated, INNER_EPSILON))

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (int(self.weights["heads"]), -1)).transpose(1, 2)

    def _linear(self, name: str, rows: Tensor) -> Tensor:
        return linear(rows, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, rows: Tensor, epsilon: float = 1e-5) -> Tensor:
        return layer_norm(rows, rows.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], epsilon)


@dataclass(frozen=True)
class Compress:
    """Each kept token with a row in ``selection.mix`` becomes what ``compressor`` reads from the tokens of that row."""

    compressor: Compressor
    saving: Saving = "real"

    def apply(self, state: Rewrites, selection: Selection) -> None:
        """Compress by the selection."""
        assert selection.mix is not None
        who, region, inside = gathered(selection.mix[0].coalesce().indices())
        compressor = Compressor({name: part.to(region.device) for name, part in self.compressor.weights.items()})
        state.rewrite(lambda rows: rows.index_copy(0, who, compressor(rows[who], rows[region], inside)), selection)


def gathered(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows ``[m]`` that ``pairs [2, p]`` name, their columns ``[m, r]``, and which of these count."""
    who, row, counts = pairs[0].unique(return_inverse=True, return_counts=True)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    region = row.new_zeros(len(who), int(counts.max()) if len(who) else 0)
    inside = torch.zeros_like(region, dtype=torch.bool)
    region[row, place], inside[row, place] = pairs[1], True
    return who, region, inside
