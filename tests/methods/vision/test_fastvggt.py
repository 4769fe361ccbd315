"""FastVGGT: joined by the authors' partition, exact against plain loops, and cheaper the more frames there are."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_robots
import torch
from methods.context.recorded import vector
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import tithe
from tithe.budget import Budget
from tithe.seams.joining import Slots
from tithe.selections.regions import Regions
from tithe.types import IMAGE, TEXT, Selection, Tokens

SPECIAL = 5


def tokens(frames: int, grid: tuple[int, int], rows: int = 1, special: int = SPECIAL) -> Tokens:
    frame = special + grid[0] * grid[1]
    cols = torch.arange(frames * frame, dtype=torch.int32).expand(rows, 1, -1)
    kind = torch.where(cols % frame < special, TEXT, IMAGE)
    seen = torch.full((rows,), frames * frame)
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), seen, kind, (grid,) * frames)


def chosen(features: Tensor, frames: int, grid: tuple[int, int], keep: Any, **how: Any) -> Selection:
    given: dict[str, Any] = {"side": 2, "salient": 0.1, "seed": 33, **how}
    return Regions(Budget(keep), **given)(None, tokens(frames, grid, len(features)), features)


@pytest.mark.parametrize("case", ["most", "some"])
def test_attention_is_the_authors(case: str) -> None:
    found, _ = vector("fastvggt")
    n, leaving = found["x"].shape[1], int(found[f"r_{case}"])
    grid = (int(found["grid"][0]), int(found["grid"][1]))
    slots = Slots.of(chosen(found["x"], int(found["frames"]), grid, n - leaving))
    assert slots is not None and slots.first.shape[1] == int(found[f"slots_{case}"])
    q, k, v = (slots.gather(x) for x in found["qkv"])
    out = slots.scatter(scaled_dot_product_attention(q, k, v).transpose(1, 2)).flatten(2)
    assert (out - found[f"out_{case}"]).abs().max() < 1e-5


def joined_by_loops(x: Tensor, values: Tensor, frames: int, grid: tuple[int, int], leaving: int) -> Tensor:
    """Each token's mean of ``values [n, d]`` after joining, in float64 and one token at a time."""
    high, wide = grid
    n, frame = len(x), SPECIAL + high * wide
    offsets = torch.randint(4, (frames - 1, high // 2, wide // 2), generator=torch.Generator().manual_seed(33))
    goals = set(range(frame))
    for f in range(1, frames):
        goals |= {f * frame + i for i in range(SPECIAL)}
        for r in range(high // 2):
            for c in range(wide // 2):
                o = int(offsets[f - 1, r, c])
                goals.add(f * frame + SPECIAL + (2 * r + o // 2) * wide + 2 * c + o % 2)
    count = int(0.1 * n)
    stays = {i * (n // count) for i in range(count)}
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    ranked = []
    for s in range(n):
        if s not in goals and s not in stays:
            alike = {g: float(unit[s] @ unit[g]) for g in goals}
            best = max(alike, key=lambda g: alike[g])
            ranked.append((alike[best], s, best))
    ranked.sort(key=lambda entry: -entry[0])
    groups: dict[int, list[int]] = {g: [g] for g in goals}
    for _, s, g in ranked[:leaving]:
        groups[g].append(s)
    out = values.double().clone()
    for members in groups.values():
        mean = values[members].double().mean(0)
        for one in members:
            if one not in stays:
                out[one] = mean
    return out


@pytest.mark.parametrize("leaving", [7, 1000])
def test_means_are_those_of_plain_loops(leaving: int) -> None:
    torch.manual_seed(1)
    frames, grid = 4, (4, 6)
    n = frames * (SPECIAL + 24)
    x, values = torch.randn(1, n, 8), torch.randn(1, 2, n, 3)
    slots = Slots.of(chosen(x, frames, grid, max(1, n - leaving)))
    assert slots is not None
    got = slots.scatter(slots.gather(values).transpose(1, 2))[0].flatten(1)
    wanted = joined_by_loops(x[0], values[0].transpose(0, 1).flatten(1), frames, grid, leaving)
    assert (got.double() - wanted).abs().max() < 1e-6


def test_first_frame_special_and_salient_tokens_stay() -> None:
    frames, grid = 6, (4, 4)
    picked = chosen(torch.randn(2, frames * 21, 8), frames, grid, 0.1)
    keep = picked.keep[:, 0].view(2, frames, 21)
    assert bool(keep[:, 0].all()) and bool(keep[:, :, :SPECIAL].all())
    later = keep[:, 1:, SPECIAL:].float().mean()
    assert 0.25 <= later < 0.4


def test_sides_that_are_no_multiples_still_cover_every_token() -> None:
    picked = chosen(torch.randn(1, 3 * 20, 8), 3, (3, 5), 0.1)
    assert picked.dest is not None
    gone = ~picked.keep[0, 0]
    assert bool(gone.any()) and bool((picked.dest[0, 0][gone] >= 0).all())


def test_model_attends_with_fewer_tokens_and_says_so() -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames(count=6)
    with torch.no_grad(), tithe.on(model, "fastvggt", level="kept") as run:
        got = model(**inputs)
    report = run.report()
    assert report.kept_tokens is not None and report.kept_tokens < report.total_tokens
    assert report.flops < report.flops_full and report.saving == "real"
    assert len(run.trace.events) == 2
    with torch.no_grad():
        plain = model(**inputs)
    assert got.depth.shape == plain.depth.shape and not torch.equal(got.pose, plain.pose)


def test_layers_below_are_left_alone() -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames()
    with torch.no_grad(), tithe.on(model, "fastvggt", layer=1) as run:
        model(**inputs)
    assert [event.layer for event in run.trace.events] == [1]


def test_eager_gives_what_sdpa_gives() -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames()
    poses = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), tithe.on(model, "fastvggt"):
            poses.append(model(**inputs).pose)
    model.set_attn_implementation("sdpa")
    assert (poses[0] - poses[1]).abs().max() < 1e-5


@pytest.mark.parametrize("params", [{"side": 0}, {"salient": 1.5}])
def test_values_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(tithe.BadInput, match="out of range"):
        tithe.method("fastvggt", **params)
