"""A Llama whose queries, keys and values are looked up in recorded tensors, so that a method runs end to end on them.

Token id i stands for column i; the residual stream carries the id through every layer untouched, RoPE is the identity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

VECTORS = Path(__file__).parents[2] / "vectors"
HIDDEN = 8


def vector(slug: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays of a recorded vector and its metadata."""
    with np.load(VECTORS / f"{slug}.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}
        return arrays, json.loads(str(file["meta"]))


class Look(nn.Module):
    """Projection that gives the recorded rows ``[H, T, d]`` of the tokens in the stream."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, hidden: Tensor) -> Tensor:
        found = self.rows[:, hidden[..., 0].long()]
        return found.permute(1, 2, 0, 3).flatten(2)


class Flat(nn.Module):
    """RoPE that turns nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.dim)
        return hidden.new_ones(shape), hidden.new_zeros(shape)


class Nothing(nn.Module):
    """Adds nothing to the stream, and remembers what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.taken.append(hidden)
        return hidden.new_zeros(*hidden.shape[:-1], HIDDEN)


class Recorded:
    """``q [L, Hq, T, d]``, ``k, v [L, Hkv, T, d]`` (one layer without the first axis) as a model."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
        v = torch.zeros_like(k) if v is None else v
        q, k, v = (t if t.dim() == 4 else t[None] for t in (q, k, v))
        layers, heads, self.length, dim = q.shape
        config = LlamaConfig(
            vocab_size=self.length,
            hidden_size=HIDDEN,
            intermediate_size=4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=k.shape[1],
            head_dim=dim,
            max_position_embeddings=4096,
        )
        self.model = LlamaForCausalLM(config).eval()
        inner = self.model.model
        with torch.no_grad():
            inner.embed_tokens.weight.zero_()
            inner.embed_tokens.weight[:, 0] = torch.arange(self.length)
        inner.rotary_emb, inner.norm = Flat(dim), nn.Identity()
        for layer, rows in zip(inner.layers, zip(q, k, v, strict=True), strict=True):
            layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
            layer.mlp = Nothing()
            own = layer.self_attn
            own.q_proj, own.k_proj, own.v_proj = (Look(t) for t in rows)
            own.o_proj = Nothing()

    def play(self, prompt: int, steps: int = 0, pads: int = 0) -> Any:
        """Read ``prompt`` columns (behind ``pads`` dead ones), then ``steps`` one by one; return the cache."""
        ids = torch.arange(prompt + steps)[None]
        mask = torch.cat([torch.zeros(1, pads), torch.ones(1, prompt + steps)], 1).long()
        first = torch.cat([torch.zeros(1, pads, dtype=torch.long), ids[:, :prompt]], 1)
        with torch.no_grad():
            cache = self.model(input_ids=first, attention_mask=mask[:, : pads + prompt]).past_key_values
            for end in range(prompt + 1, prompt + steps + 1):
                self.model(input_ids=ids[:, end - 1 : end], attention_mask=mask[:, : pads + end], past_key_values=cache)
        return cache

    def outputs(self, layer: int = 0) -> list[Tensor]:
        """The attention outputs of every forward so far, each ``[B, Hq, T, d]``."""
        own = self.model.model.layers[layer].self_attn
        return [t.view(*t.shape[:2], -1, own.head_dim).transpose(1, 2) for t in own.o_proj.taken]


def held(cache: Any, layer: int = 0, row: int = 0) -> list[list[int]]:
    """The columns that every head of a layer holds."""
    view = cache.layers[layer].store.view()
    heads = view.keys.shape[1]
    cols = view.cols.expand(view.cols.shape[0], heads, -1)
    valid = view.valid.expand_as(cols)
    return [cols[row, head][valid[row, head]].tolist() for head in range(heads)]


def same_set(got: list[int], wanted: Tensor) -> bool:
    """Whether two lists name the same columns, each once."""
    return sorted(got) == sorted(wanted.tolist())


def grouped(k: Tensor, heads: int) -> Tensor:
    """Repeat key heads ``[1, Hkv, T, d]`` to ``heads``, as the authors do before they store them."""
    return k.repeat_interleave(heads // k.shape[1], 1)
