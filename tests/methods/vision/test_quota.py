from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods.vision.clips import pictures, tokens, video
from methods.vision.contract import contract, generated, vector
from torch import Tensor

import tithe
from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.resized import Resized, bilinear, floors, smaller
from tithe.types import Selection

VECTOR, META = vector("quota")
CASES = list(enumerate(META["parameters"]["cases_weights_total"]))


def made(selection: Selection, features: Tensor) -> Tensor:
    """What the kept tokens are made of ``features [n, d]``."""
    assert selection.mix is not None
    return (selection.mix[0].to_dense().double() @ features.double())[selection.keep[0, 0]]


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_as_the_authors(case: int, given: tuple[int, int]) -> None:
    weights, features, side = VECTOR["weights"][given[0]], VECTOR["features"], META["parameters"]["grid"]
    score = weights.repeat_interleave(side * side)[None, None]
    selection = Resized(Budget(given[1]))(score, tokens(8, side, side))
    counts = floors(weights, torch.full((8,), side * side), given[1])
    sizes = [list(smaller((side, side), count)) if count else [0, 0] for count in counts]
    assert sizes == VECTOR[f"sizes_{case}"].tolist()
    assert torch.allclose(made(selection, features.flatten(0, 1)), VECTOR[f"tokens_{case}"].double(), atol=1e-5)


def naive(frame: Tensor, rows: int, cols: int) -> Tensor:
    """``frame [h, w, d]`` resized by loops, half-pixel centres."""
    height, width, _ = frame.shape
    out = []
    for row in range(rows):
        y = max((row + 0.5) * height / rows - 0.5, 0.0)
        for col in range(cols):
            x = max((col + 0.5) * width / cols - 0.5, 0.0)
            top, left = int(y), int(x)
            low, near = min(top + 1, height - 1), min(left + 1, width - 1)
            down, right = y - top, x - left
            out.append(
                (1 - down) * ((1 - right) * frame[top, left] + right * frame[top, near])
                + down * ((1 - right) * frame[low, left] + right * frame[low, near])
            )
    return torch.stack(out)


@pytest.mark.parametrize("grid", [(5, 5), (4, 7), (9, 3), (1, 8)])
@pytest.mark.parametrize("wanted", [3, 20, 41, 90])
def test_against_loops(grid: tuple[int, int], wanted: int) -> None:
    draw = torch.Generator().manual_seed(wanted)
    height, width = grid
    total = 6 * height * width
    wanted = min(wanted, total - 1)
    features = torch.randn(total, 4, generator=draw, dtype=torch.float64)
    weights = torch.rand(6, generator=draw) ** 2
    selection = Resized(Budget(wanted))(weights.repeat_interleave(height * width)[None, None], tokens(6, height, width))
    left, free, counts = float(wanted), list(range(6)), dict.fromkeys(range(6), 0.0)
    while free:
        share = {n: left * float(weights[n].double()) / float(weights[free].double().sum()) for n in free}
        full = [n for n in free if share[n] >= height * width]
        counts |= share
        if not full:
            break
        for n in full:
            counts[n] = height * width
            left -= height * width
            free.remove(n)
    if max(counts.values()) < 1:
        counts[int(weights.argmax())] = 1
    rows: list[Tensor] = []
    kept = 0
    for frame in range(6):
        count = int(counts[frame])
        if not count:
            continue
        high = max(1, min(height, int(math.sqrt(count * height / width))))
        wide = max(1, min(width, int(math.sqrt(count * width / height)), count // high))
        if (high + 1) * wide <= count and high < height:
            high += 1
        elif high * (wide + 1) <= count and wide < width:
            wide += 1
        rows.append(naive(features.view(6, height, width, 4)[frame], high, wide))
        kept += high * wide
        inside = selection.keep[0, 0].view(6, -1)[frame]
        assert int(inside.sum()) == high * wide <= count
    assert int(selection.keep.sum()) == kept <= wanted
    assert torch.allclose(made(selection, features), torch.cat(rows), atol=1e-6)


def test_resizing_agrees_with_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    for grid, small in (((14, 14), (6, 5)), ((27, 27), (9, 9)), ((3, 8), (3, 8)), ((5, 4), (1, 1))):
        picture = torch.randn(1, 3, *grid, generator=draw)
        at, of, share = bilinear(grid, small, picture.device)
        out = torch.zeros(3, small[0] * small[1]).index_add_(1, at, picture.flatten(2)[0, :, of] * share)
        wanted = torch.nn.functional.interpolate(picture, small, mode="bilinear")
        assert torch.allclose(out, wanted[0].flatten(1), atol=1e-5)


def test_shares() -> None:
    sizes = torch.full((4,), 10)
    assert floors(torch.tensor([1.0, 1.0, 1.0, 1.0]), sizes, 18) == [4, 4, 4, 4]
    assert floors(torch.tensor([8.0, 1.0, 1.0, 0.0]), sizes, 20) == [10, 5, 5, 0]
    assert floors(torch.tensor([1.0, 5.0, 2.0, 1.0]) / 100, sizes, 2) == [0, 1, 0, 0]
    assert floors(torch.tensor([1.0, 1.2, 1.0, 1.0]), sizes, 1) == [0, 1, 0, 0]
    assert floors(torch.zeros(4), sizes, 8) == [2, 2, 2, 2]


def test_a_long_clip_is_no_square_matrix() -> None:
    given = tokens(64, 14, 14)
    selection = Resized(Budget(0.3))(torch.rand(64).repeat_interleave(196)[None, None], given)
    assert selection.mix is not None and selection.mix.is_sparse
    assert selection.mix._nnz() <= 4 * int(selection.keep.sum()) < 4 * 0.3 * 64 * 196


def chances(vlm: Any, inputs: dict[str, Tensor], before: Tensor, behind: Tensor, frames: Tensor, yes: int) -> Tensor:
    """How likely the model says ``yes`` to each of ``frames [F, m, d]``, by a plain forward on embeddings."""
    table, found = vlm.get_input_embeddings(), []
    with torch.no_grad():
        for frame in frames:
            embeds = torch.cat([table(before), frame, table(behind)])[None]
            found.append(vlm(inputs_embeds=embeds).logits[0, -1].double().softmax(-1)[yes])
    return torch.stack(found)


@pytest.mark.parametrize("query", [None, (40, 41, 42)])
def test_frames_are_scored_by_the_model_itself(query: tuple[int, ...] | None) -> None:
    vlm, inputs = video(4)
    ids = inputs["input_ids"][0]
    with torch.no_grad():
        features = vlm.get_video_features(inputs["pixel_values_videos"]).pooler_output[0, :16].view(4, 4, -1)
    behind = ids[22:] if query is None else torch.tensor(query)
    chance = chances(vlm, inputs, ids[:5], behind, features, 17)
    with tithe.on(vlm, "quota", keep=0.5, query=query, answer=17, level="scores") as run, torch.no_grad():
        out = vlm.generate(
            **inputs,
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    (event,) = run.trace.events
    wanted = ((chance / chance.max()) ** 2).float().repeat_interleave(4)
    assert torch.allclose(event.scores[0, 0, :16], wanted, rtol=1e-3)
    assert float(event.scores[0, 0, 16]) == 0 and bool(event.keep[0, 0, 16])
    counts = event.keep[0, 0, :16].view(4, 4).sum(-1)
    exact = floors(wanted[::4], torch.full((4,), 4), 8)
    assert counts.tolist() == [math.prod(smaller((2, 2), count)) if count else 0 for count in exact]
    rows = []
    for frame, count in zip(features, exact, strict=True):
        if count:
            rows.append(naive(frame.view(2, 2, -1).double(), *smaller((2, 2), count)))
    stays = torch.ones(len(ids), dtype=torch.bool)
    stays[5:22] = event.keep[0, 0]
    with torch.no_grad():
        embeds = vlm.get_input_embeddings()(ids).clone()
        where = torch.arange(5, 21)[event.keep[0, 0, :16]]
        embeds[where] = torch.cat(rows).float()
        embeds[21] = vlm.model.image_newline
        plain = vlm(
            inputs_embeds=embeds[stays][None],
            attention_mask=torch.ones(1, int(stays.sum()), dtype=torch.long),
            position_ids=stays.nonzero().T,
        ).logits[:, -1]
    assert torch.allclose(out.logits[0], plain, atol=1e-4)


def test_asking_is_counted() -> None:
    inputs = pictures([3])
    _, asking = generated("quota", inputs, keep=0.5)
    _, sampling = generated("uniform-patches", inputs, keep=0.5)
    assert asking.report().flops > sampling.report().flops


def test_pictures_as_frames() -> None:
    _, run = generated("quota", pictures([4, 2]), keep=20)
    assert [len(event.keep[0, 0]) for event in run.trace.events] == [64, 32]
    assert all(0 < sum(event.kept) <= 20 for event in run.trace.events)


def test_refusals() -> None:
    for given in ({"query": ()}, {"power": -1.0}, {"keep": 0}):
        with pytest.raises(BadInput, match=r"empty|out of range"):
            tithe.method("quota", **given)
    with pytest.raises(BadInput, match="answer=900 is no token id"):
        generated("quota", pictures([1]), answer=900)


def test_contract() -> None:
    contract("quota")
