"""Bi-level routing attention: cutting, routing and attention against loops in float64, the layer against theirs."""

from __future__ import annotations

import math

import pytest
import torch
from naive import vector
from torch import Tensor

from tithe.errors import BadInput
from tithe.modules import biformer as ours
from tithe.modules.biformer import BiLevelRoutingAttention, route, routed_attention, to_image, to_regions


def region_of(y: int, x: int, grid: tuple[int, int], side: int) -> int:
    return y // (grid[0] // side) * side + x // (grid[1] // side)


def naive(q: Tensor, k: Tensor, v: Tensor, side: int, keep: int, heads: int) -> tuple[Tensor, list[list[list[int]]]]:
    """Attention of one token at a time over an image ``[B, rows, columns, d]``, and the regions read."""
    rows, height, width, dim = q.shape
    grid, size = (height, width), dim // heads
    places = [(y, x) for y in range(height) for x in range(width)]
    out, routes = torch.zeros_like(v), []
    for row in range(rows):
        members = [[p for p in places if region_of(*p, grid, side) == r] for r in range(side**2)]
        means = [[sum(t[row, y, x] for y, x in m) / len(m) for m in members] for t in (q, k)]
        chosen = []
        for r in range(side**2):
            logits = [float(means[0][r] @ mean) for mean in means[1]]
            chosen.append(sorted(range(side**2), key=lambda i: -logits[i])[:keep])
        routes.append(chosen)
        for y, x in places:
            seen = [p for r in chosen[region_of(y, x, grid, side)] for p in members[r]]
            for head in range(heads):
                part = slice(head * size, head * size + size)
                logits = [float(q[row, y, x, part] @ k[row, a, b, part]) / math.sqrt(dim) for a, b in seen]
                top = max(logits)
                mass = [math.exp(value - top) for value in logits]
                for weight, (a, b) in zip(mass, seen, strict=True):
                    out[row, y, x, part] += weight / sum(mass) * v[row, a, b, part]
    return out, routes


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 6, 8, dtype=torch.float64) for _ in range(3))
    return 2 * q, k, v


@pytest.mark.parametrize("keep", [1, 3])
def test_same_as_token_by_token(keep: int) -> None:
    q, k, v = inputs()
    expected, chosen = naive(q, k, v, side=2, keep=keep, heads=2)
    cut = [to_regions(t, 2) for t in (q, k, v)]
    routes = route(cut[0], cut[1], keep)
    assert routes.tolist() == chosen
    got = to_image(routed_attention(*cut, routes, heads=2), 2, (4, 6))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_cutting_is_undone() -> None:
    image = torch.arange(2 * 4 * 6 * 3.0).view(2, 4, 6, 3)
    cut = to_regions(image, 2)
    assert cut.shape == (2, 4, 6, 3)
    assert torch.equal(cut[0, 1], image[0, :2, 3:].flatten(0, 1))
    assert torch.equal(to_image(cut, 2, (4, 6)), image)


def test_every_region_kept_is_full_attention() -> None:
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(8, heads=2, regions=2, keep=4, local=0).double()
    hidden = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    q, k, v = layer.qkv(hidden).flatten(1, 2).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    full = ((q @ k.mT) / math.sqrt(8)).softmax(-1) @ v
    expected = layer.out(full.transpose(1, 2).flatten(2)).unflatten(1, (4, 6))
    torch.testing.assert_close(layer(hidden), expected, rtol=1e-10, atol=1e-10)


def test_a_region_that_is_not_routed_to_does_not_matter() -> None:
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(8, heads=2, regions=2, keep=1, local=0).eval()
    hidden = torch.randn(1, 4, 6, 8)
    q, k, _ = to_regions(layer.qkv(hidden), 2).chunk(3, -1)
    routes = layer.choose(q, k)[0]
    read = {int(routes[0, 0]), 0}
    other = next(r for r in range(4) if r not in read)
    moved = to_regions(hidden, 2).clone()
    # A shift that leaves the mean alone leaves every route alone.
    moved[:, other] += torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[:, None]
    change = to_regions(layer(to_image(moved, 2, (4, 6))) - layer(hidden), 2)[0]
    assert change[0].abs().max() == 0 and change[other].abs().max() > 1e-4


def test_same_numbers_as_the_authors() -> None:
    saved, meta = vector("biformer")
    layer = BiLevelRoutingAttention(16, meta["heads"], meta["regions"], meta["keep"], meta["local"])
    names = {"qkv": "qkv.qkv", "out": "wo", "local": "lepe"}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            part, kind = name.split(".")
            parameter.copy_(saved[f"w.{names[part]}.{kind}"])
    hidden = saved["x"].requires_grad_()
    q, k, _ = to_regions(layer.qkv(hidden), meta["regions"]).chunk(3, -1)
    assert torch.equal(layer.choose(q, k), saved["routes"])
    out = layer(hidden)
    out.backward(saved["d_out"])
    for name, got in {"out": out, "dx": hidden.grad, "d_qkv": layer.qkv.weight.grad}.items():
        torch.testing.assert_close(got, saved[name], rtol=1e-4, atol=1e-4)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadInput, match="regions=3 do not divide"):
        BiLevelRoutingAttention(8, 2, regions=3)(torch.zeros(1, 4, 6, 8))
    with pytest.raises(BadInput, match="keep=5 of 4"):
        BiLevelRoutingAttention(8, 2, regions=2, keep=5)
    with pytest.raises(BadInput, match="local=4"):
        BiLevelRoutingAttention(8, 2, local=4)
    with pytest.raises(BadInput, match="heads=3"):
        BiLevelRoutingAttention(8, 3)


def test_card() -> None:
    card = ours.CARD
    assert (card.slug, card.arxiv, card.year) == ("biformer", "2303.08810", 2023)
    assert card.code == "rayleizhu/BiFormer" and card.family == "vision" and card.hosts == ()
