"""A vision tower that merges and a language model that reads virtual tokens, by plain maths in float64, one row."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

Edge = tuple[float, int, int]
Choose = Callable[[int, list[Edge], int], int]


@torch.no_grad()
def merged_tower(vlm: Any, image: Tensor, blocks: int, choose: Choose) -> tuple[Tensor, list[list[int]]]:
    """Return the tokens ``[n, d]`` of a CLIP tower behind ``blocks`` blocks, and the slots (0: CLS) in each.

    ``choose(block, edges, tokens)`` says how many of the ``edges`` (likeness, from, to), best first, are joined.
    """
    tower = deepcopy(vlm.model.vision_tower).double()
    heads = tower.config.num_attention_heads
    x = tower.pre_layrnorm(tower.embeddings(image[None].double()))[0]
    groups = [[n] for n in range(len(x))]
    for index, block in enumerate(tower.encoder.layers[:blocks]):
        own, normed = block.self_attn, block.layer_norm1(x)
        q, k, v = (
            part(normed).view(len(x), heads, -1).transpose(0, 1) for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        sizes = torch.tensor([float(len(group)) for group in groups], dtype=torch.float64)
        probs = (q @ k.mT * q.shape[-1] ** -0.5 + sizes.log()).softmax(-1)
        x = x + own.out_proj((probs @ v).transpose(0, 1).reshape(len(x), -1))
        unit = k.mean(0) / k.mean(0).norm(dim=-1, keepdim=True)
        edges = []
        for a in range(2, len(x), 2):
            likeness, b = max((float(unit[a] @ unit[b]), -b) for b in range(1, len(x), 2))
            edges.append((likeness, -a, b))
        edges = [(likeness, -a, -b) for likeness, a, b in sorted(edges, reverse=True)]
        chosen = edges[: min(choose(index, edges, len(x)), (len(x) - 1) // 2)]
        gone = {a: b for _, a, b in chosen}
        order = [n for n in range(0, len(x), 2) if n not in gone] + list(range(1, len(x), 2))
        if not gone:
            order = list(range(len(x)))
        rows, joined = [], []
        for slot in order:
            into = [slot, *(a for a, b in gone.items() if b == slot)]
            rows.append(sum(x[s] * len(groups[s]) for s in into) / sum(len(groups[s]) for s in into))
            joined.append(sorted(patch for s in into for patch in groups[s]))
        x, groups = torch.stack(rows), joined
        x = x + block.mlp(block.layer_norm2(x))
    return x, groups


@torch.no_grad()
def virtual_logits(vlm: Any, embeds: Tensor, stands: list[list[int]]) -> Tensor:
    """Return the logits ``[n, V]`` of tokens ``embeds [n, d]`` of which token i stands at the positions ``stands[i]``.

    Everything is laid out at its positions, attended over, and averaged back, position by position.
    """
    text = deepcopy(vlm.model.language_model).double()
    config = text.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = config.rope_parameters["rope_theta"]
    angle = 1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    at = sorted((position, token) for token, held in enumerate(stands) for position in held)

    def turned(row: Tensor, position: int) -> Tensor:
        first, second = row[..., : dim // 2], row[..., dim // 2 :]
        cos, sin = (position * angle).cos(), (position * angle).sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    x = embeds.double()
    for layer in text.layers:
        own, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (part(normed).view(len(x), -1, dim) for part in (own.q_proj, own.k_proj, own.v_proj))
        keys = torch.stack([turned(k[token], position) for position, token in at])
        values = torch.stack([v[token] for _, token in at])
        group = q.shape[1] // k.shape[1]
        gathered: list[list[Tensor]] = [[] for _ in stands]
        for place, (position, token) in enumerate(at):
            query = turned(q[token], position).view(-1, group, dim)
            probs = torch.einsum("hgd,nhd->hgn", query, keys[: place + 1]) * dim**-0.5
            out = torch.einsum("hgn,nhd->hgd", probs.softmax(-1), values[: place + 1])
            gathered[token].append(out.reshape(-1))
        x = x + own.o_proj(torch.stack([torch.stack(outs).mean(0) for outs in gathered]))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    logits: Tensor = deepcopy(vlm.lm_head).double()(text.norm(x))
    return logits
