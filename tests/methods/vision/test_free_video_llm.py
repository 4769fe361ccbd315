from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from methods.vision.clips import parts, pictures, same_rows, tokens, video
from methods.vision.contract import contract, generated, vector
from torch import Tensor
from torch.nn.functional import cosine_similarity

import tithe
from tithe.actions.pool import Pool
from tithe.errors import BadInput, Refused
from tithe.scores.relevance import frames_and_pairs
from tithe.seams.asking import Prompted
from tithe.seams.evidence import Evidence
from tithe.selections.paths import Paths, blocks
from tithe.types import Selection, Tokens

VECTOR, META = vector("free-video-llm")
CASES = list(enumerate(META["parameters"]["cases_slow_roi_middle_grid_clip"]))


class Said(Prompted):
    """A prompt whose text behind the pictures embeds as ``text [d]``."""

    after = torch.tensor([False, True])

    def __init__(self, text: Tensor) -> None:
        self.embeds = torch.stack([-text, text])[None]


class Held:
    """Features that an action rewrites."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.kept = rows, torch.ones(len(rows), dtype=torch.bool)

    def rewrite(self, make: Any, selection: Selection) -> None:
        self.rows, self.kept = make(self.rows), selection.keep[0, 0]


def decided(clip: Tensor, text: Tensor, paths: Paths) -> tuple[Selection, Tensor, Tensor]:
    """What ``paths`` selects of ``clip [F, side, side, d]``, the score, and what the tokens become."""
    count, height, width, _ = clip.shape
    given = tokens(count, height, width)
    flat = clip.reshape(count * height * width, -1)
    evidence = Evidence({}, features=flat[None], parts=lambda: parts(count, height, width), prompt=Said(text))
    score = frames_and_pairs(evidence, given)
    selection = paths(score, given)
    held = Held(flat.float())
    Pool().apply(held, selection)
    return selection, score, held.rows


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_as_the_authors(case: int, given: tuple[int, ...]) -> None:
    slow, roi, middle, grid, number = given
    clip, text = VECTOR[f"features_{number}"], VECTOR[f"text_{number}"][0]
    side = math.isqrt(clip.shape[1])
    paths = Paths(slow, middle, 50, grid, roi / 10)
    selection, score, rows = decided(clip.unflatten(1, (side, side)), text, paths)
    theirs = VECTOR[f"tokens_{case}"]
    detailed, coarse = paths.chosen(score[0, 0].view(len(clip), -1)[:, 0])
    order = score[0, 0].view(len(clip), -1)[:, 0].argsort()
    best = sorted(order[len(order) - slow :].tolist()) if slow else []
    spread = [n * len(clip) // middle for n in range(middle)]
    assert detailed == {*best, *spread} and coarse == set(range(len(clip)))
    kept = selection.keep[0, 0]
    assert selection.mix is not None
    summed = torch.zeros_like(kept)
    summed[selection.mix.coalesce().indices()[1]] = True
    each = (len(theirs) - len(clip) * grid * grid) // max(1, len(best) + len(spread))
    split = theirs.split([each] * (len(best) + len(spread)) + [grid * grid] * len(clip))
    frame = torch.arange(len(clip)).repeat_interleave(side * side)
    for number, shown in zip([*best, *spread], split, strict=False):
        assert same_rows(rows[kept & ~summed & (frame == number)], shown)
    for number, shown in enumerate(split[len(best) + len(spread) :]):
        assert same_rows(rows[kept & summed & (frame == number)], shown)


def boxed(like: list[list[float]], roi: float) -> set[tuple[int, int]]:
    """The region of interest by loops, from likeness row by row."""
    height, width = len(like), len(like[0])
    cells = sorted(((row, col) for row in range(height) for col in range(width)), key=lambda c: -like[c[0]][c[1]])
    best = cells[: max(1, int(height * width * roi))]
    high, wide = (max(1, round(side * math.sqrt(roi))) for side in (height, width))
    top = int(sum(row for row, _ in best) / len(best)) - high // 2
    left = int(sum(col for _, col in best) / len(best)) - wide // 2
    top, left = max(0, min(top, height - high)), max(0, min(left, width - wide))
    return {(row, col) for row in range(top, top + high) for col in range(left, left + wide)}


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (4, 4), (3, 6)])
def test_against_loops(height: int, width: int, folded: bool) -> None:
    draw = torch.Generator().manual_seed(height)
    clip = torch.randn(6, height, width, 5, generator=draw, dtype=torch.float64)
    text = torch.randn(5, generator=draw, dtype=torch.float64)
    selection, _, rows = decided(clip, text, Paths(2, 2, 4, 2, 0.5, folded))
    like = [float(cosine_similarity(text, frame.flatten(0, 1).mean(0), dim=0)) for frame in clip]
    order = sorted(range(6), key=lambda n: like[n])
    detailed, coarse = {*order[-2:], 0, 3}, set(order[-4:])
    want: dict[tuple[int, int, int], Tensor] = {}
    for number in range(6):
        frame = clip[number]
        half = -(-width // 2)
        if number in detailed:
            pair = {
                (row, col): frame[row, 2 * col : 2 * col + 2].amax(0) for row in range(height) for col in range(half)
            }
            near = {cell: float(cosine_similarity(text, one, dim=0)) for cell, one in pair.items()}
            if folded and height % 2 == 0:
                grid = [[near[divmod(r * 2 * half + c, half)] for c in range(2 * half)] for r in range(height // 2)]
                inside = {divmod(r * 2 * half + c, half) for r, c in boxed(grid, 0.5)}
            else:
                inside = boxed([[near[row, col] for col in range(half)] for row in range(height)], 0.5)
            want |= {(number, row, 2 * col): pair[row, col] for row, col in inside}
        if number in coarse:
            free = [col for col in range(width) if number not in detailed or col % 2]
            lines = min(2, height // 2) if number in detailed else 2
            for row in range(lines):
                for col in range(2):
                    up, low = row * height // lines, math.ceil((row + 1) * height / lines)
                    left, right = col * width // 2, math.ceil((col + 1) * width / 2)
                    at = (2 * row + 1) * height // (2 * lines), free[(2 * col + 1) * len(free) // 4]
                    want[number, *at] = frame[up:low, left:right].flatten(0, 1).mean(0)
    kept = {
        (place // (height * width), place % (height * width) // width, place % width): rows[place]
        for place in selection.keep[0, 0].nonzero()[:, 0].tolist()
    }
    assert kept.keys() == want.keys()
    assert all(torch.allclose(kept[place].double(), want[place], atol=1e-5) for place in want)


def test_blocks_never_stand_where_pairs_do() -> None:
    for height in range(1, 12):
        for width in range(1, 12):
            places = torch.arange(height * width).view(height, width)
            for paired in (True, False):
                found = blocks(places, 4, paired)
                slots = [int(slot) for slot, _ in found]
                assert (
                    len(set(slots))
                    == len(slots)
                    == (min(4, max(1, height // 2)) * min(4, width // 2) if paired else min(4, height) * min(4, width))
                )
                assert not paired or all(slot % width % 2 for slot in slots)
                covered = {int(place) for _, block in found for place in block}
                assert covered == set(range(height * width)) or not found


def test_frames_of_two_shapes_are_refused() -> None:
    given = tokens(2, 2, 4)
    origin = given.origin
    assert origin is not None
    origin = origin.clone()
    origin[8:, 1], origin[8:, 2] = torch.arange(8) // 2, torch.arange(8) % 2
    with pytest.raises(Refused, match="no frames of one video"):
        Paths()(torch.zeros(1, 2, 16), replace(given, origin=origin))
    with pytest.raises(Refused, match="no full raster"):
        Paths()(torch.zeros(1, 2, 15), _without_first(given))


def _without_first(given: Tokens) -> Tokens:
    assert given.origin is not None
    return replace(given, origin=given.origin[1:], cols=given.cols[..., 1:], valid=given.valid[..., 1:], kind=None)


def test_the_question_decides() -> None:
    """Text behind the pictures, not that before them, is what frames are compared with."""
    vlm, inputs = video(6)
    ids = inputs["input_ids"].clone()
    kept = []
    for change in (None, 0, -1):
        now = ids.clone()
        if change is not None:
            now[0, change] = (now[0, change] + 31) % 80 + 10
        with tithe.on(vlm, "free-video-llm", slow=1, middle=0, fast=0, level="scores") as run, torch.no_grad():
            vlm.generate(**{**inputs, "input_ids": now}, max_new_tokens=1, do_sample=False, pad_token_id=0)
        kept.append(run.trace.events[0].scores)
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_pictures_as_frames() -> None:
    out, run = generated("free-video-llm", pictures([6, 4]), slow=1, middle=1, fast=3, grid=2)
    assert [len(event.keep[0, 0]) for event in run.trace.events] == [96, 64]
    assert all(0 < sum(event.kept) <= 3 * 4 + 2 * 8 for event in run.trace.events)
    assert bool(out.logits[0].isfinite().all())


def test_refusals() -> None:
    for given in ({"slow": -1}, {"grid": 0}, {"roi": 0.0}, {"slow": 0, "middle": 0, "fast": 0}):
        with pytest.raises(BadInput, match=r"out of range|no frame"):
            tithe.method("free-video-llm", **given)


def test_contract() -> None:
    contract("free-video-llm")
