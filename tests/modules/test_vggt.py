"""The geometry transformer: its attention by plain loops, its frames as a set behind the first, its weights on disk."""

from __future__ import annotations

from pathlib import Path

import tiny_robots
import torch
from torch import Tensor

from tithe.modules.vggt import VGGT, rotary


def naive(block: torch.nn.Module, hidden: Tensor, places: Tensor, theta: float) -> Tensor:
    """One block on ``hidden [n, d]`` in float64, head by head and pair by pair."""
    own = block.attention
    x = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], block.norm1.weight, block.norm1.bias)
    qkv = x @ own.qkv.weight.T + own.qkv.bias
    n, dim = len(hidden), own.head_dim
    out = torch.zeros_like(hidden)
    for head in range(own.heads):
        q, k, v = (qkv[:, part * own.heads * dim + head * dim :][:, :dim] for part in range(3))
        q = torch.nn.functional.layer_norm(q, (dim,), own.q_norm.weight, own.q_norm.bias)
        k = torch.nn.functional.layer_norm(k, (dim,), own.k_norm.weight, own.k_norm.bias)
        turned = []
        for rows in (q, k):
            new = rows.clone()
            for i in range(n):
                for axis in range(2):
                    half = dim // 2
                    for f in range(half // 2):
                        angle = places[i, axis].double() * theta ** (-2 * f / half)
                        a, b = axis * half + f, axis * half + half // 2 + f
                        new[i, a] = rows[i, a] * angle.cos() - rows[i, b] * angle.sin()
                        new[i, b] = rows[i, b] * angle.cos() + rows[i, a] * angle.sin()
            turned.append(new)
        weights = (turned[0] @ turned[1].T / dim**0.5).softmax(-1)
        out[:, head * dim : (head + 1) * dim] = weights @ v
    return hidden + block.scale1 * (out @ own.proj.weight.T + own.proj.bias)


def test_block_is_that_of_plain_loops() -> None:
    model = tiny_robots.vggt()
    block, config = model.aggregator.global_blocks[0], model.config
    torch.manual_seed(0)
    hidden, places = torch.randn(6, config.hidden_size), torch.tensor([[0, 0], [1, 1], [1, 2], [2, 1], [2, 2], [3, 1]])
    with torch.no_grad():
        turn = rotary(places, config.hidden_size // config.num_attention_heads, config.rope_theta)
        attended = hidden + block.scale1 * block.attention(block.norm1(hidden[None]), turn)[0]
        double = type(block)(config).double()
        double.load_state_dict(block.state_dict())
        wanted = naive(double, hidden.double(), places, config.rope_theta)
    assert (attended.double() - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_frames_behind_the_first_are_a_set() -> None:
    model, images = tiny_robots.vggt(), tiny_robots.frames()["images"]
    order = torch.tensor([0, 3, 1, 4, 2])
    plain, moved = model(images), model(images[:, order])
    assert (moved.pose - plain.pose[:, order]).abs().max() < 1e-5
    assert (moved.depth - plain.depth[:, order]).abs().max() < 1e-4
    other = model(images[:, [1, 0, 2, 3, 4]])
    assert (other.pose[:, [1, 0]] - plain.pose[:, :2]).abs().max() > 1e-3


@torch.no_grad()
def test_depth_lies_where_its_patch_lies() -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames()
    out = model(**inputs)
    token = out.last_hidden_state[1, 3, model.aggregator.special + 6 * 1 + 2]
    assert (model.depth(token)[:16].view(4, 4).exp() - out.depth[1, 3, 4:8, 8:12]).abs().max() < 1e-5


@torch.no_grad()
def test_weights_come_back_from_disk(tmp_path: Path) -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames()
    model.save_pretrained(tmp_path)
    again = VGGT.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**inputs).depth, model(**inputs).depth)
    assert again(**inputs).confidence.min() > 1
