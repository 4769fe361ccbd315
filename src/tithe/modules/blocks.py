"""A pre-norm transformer block, and those of a trained ViT, for modules that are built out of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Block(nn.Module):
    """Attention and an MLP on ``[..., n, width]``, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int, inner: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.before, self.between = (nn.LayerNorm(width, eps) for _ in range(2))
        self.mlp: nn.Module = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def attend(self, queries: Tensor, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Attend from ``queries [..., m, width]`` to ``tokens [..., n, width]``, all of them normalised already.

        ``prompts [..., 2, K, width]`` are keys and values that stand before those of the tokens; it broadcasts.
        """
        key, value = self.key(tokens), self.value(tokens)
        if prompts is not None:
            before = prompts.expand(*key.shape[:-2], *prompts.shape[-3:])
            key, value = torch.cat([before[..., 0, :, :], key], -2), torch.cat([before[..., 1, :, :], value], -2)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in (self.query(queries), key, value))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``[..., n, width]``."""
        normal = self.before(hidden)
        hidden = hidden + self.attend(normal, normal)
        return hidden + self.mlp(self.between(hidden))


def vit_blocks(vit: Any) -> nn.ModuleList:
    """Copy the blocks of a transformers ``ViTModel``, frozen."""
    made = []
    for layer in vit.layers:
        attention = layer.attention
        width, inner = layer.mlp.fc1.in_features, layer.mlp.fc1.out_features
        block = Block(width, attention.num_attention_heads, inner, layer.layernorm_before.eps)
        block.mlp = nn.Sequential(nn.Linear(width, inner), layer.mlp.activation_fn, nn.Linear(inner, width))
        parts = {
            block.query: attention.q_proj, block.key: attention.k_proj, block.value: attention.v_proj,
            block.out: attention.o_proj, block.before: layer.layernorm_before, block.between: layer.layernorm_after,
            block.mlp[0]: layer.mlp.fc1, block.mlp[2]: layer.mlp.fc2,
        }  # fmt: skip
        for mine, theirs in parts.items():
            mine.load_state_dict(theirs.state_dict())
        made.append(block.requires_grad_(False))
    return nn.ModuleList(made)
