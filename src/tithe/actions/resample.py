"""Let the tokens that stay read all tokens. TextMonkey's token resampler (arXiv:2403.04473)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from tithe.actions.pool import Rewrites
from tithe.types import Saving, Selection


@dataclass(frozen=True)
class Resampler:
    """Cross-attention in fewer channels, from the tokens that stay to all and to themselves once more.

    ``weights`` by name: ``heads``, ``down`` (no bias), ``norm_all``, ``norm_kept``, ``query``, ``key_value``, ``out``,
    then ``norm``, ``fc1``, ``fc2`` (no biases) and ``scale``, which is added to the tokens as they were.
    """

    weights: dict[str, Tensor]

    def __call__(self, kept: Tensor, rows: Tensor) -> Tensor:
        """Return what becomes of ``kept [..., m, d]``, which are among ``rows [..., n, d]``."""
        w = self.weights
        few, every = linear(kept, w["down.weight"]), linear(rows, w["down.weight"])
        few, every = self._norm("norm_kept", few), self._norm("norm_all", every)
        key, value = linear(torch.cat([every, few], -2), w["key_value.weight"]).chunk(2, -1)
        query = linear(few, w["query.weight"])
        read = scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value))
        out = self._norm("norm", linear(read.transpose(-3, -2).flatten(-2), w["out.weight"]))
        return kept + w["scale"] * linear(gelu(linear(out, w["fc1.weight"])), w["fc2.weight"])

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (int(self.weights["heads"]), -1)).transpose(-3, -2)

    def _norm(self, name: str, rows: Tensor) -> Tensor:
        return layer_norm(rows, rows.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


@dataclass(frozen=True)
class Resample:
    """The tokens that stay take in, through ``resampler``, what all tokens show."""

    resampler: Resampler
    saving: Saving = "real"

    def apply(self, state: Rewrites, selection: Selection) -> None:
        """Resample by the selection."""
        kept = selection.keep[0, 0].nonzero()[:, 0]
        resampler = Resampler({name: part.to(kept.device) for name, part in self.resampler.weights.items()})
        state.rewrite(lambda rows: rows.index_copy(0, kept, resampler(rows[kept], rows)), selection)
