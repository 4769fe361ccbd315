from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from methods.vision.clips import peak, pictures, same_rows, tokens, video
from methods.vision.contract import contract, generated, vector
from torch import Tensor
from torch.nn.functional import cosine_similarity

import tithe
from tithe.budget import Budget
from tithe.errors import BadInput, Refused
from tithe.seams.merging import joined
from tithe.selections.absorbed import Absorbed
from tithe.selections.segments import segments, stills
from tithe.selections.still_and_moving import StillAndMoving, distances, peaks
from tithe.types import IMAGE, TEXT, Selection, Tokens

VECTOR, META = vector("holitom")
CASES = list(enumerate(META["parameters"]["cases"]))


def merged(selection: Selection, features: Tensor) -> Tensor:
    """What the kept tokens of ``features [n, d]`` become."""
    assert selection.dest is not None
    return joined(features[None], selection.dest[:, 0], None, selection.weight)[0][0]


# -- the authors' numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_as_the_authors(case: int, given: dict[str, float]) -> None:
    features, attention = VECTOR[f"features_{case}"], VECTOR[f"attention_{case}"]
    frames, size = attention.shape
    places = torch.arange(frames * size).view(frames, size)
    cuts, saved = segments(stills(features.flatten(0, 1), places, given["tau"]), int(given["most"]))
    assert cuts == [tuple(cut) for cut in VECTOR[f"segments_{case}"].tolist()]
    assert saved == float(VECTOR[f"reduced_{case}"])
    select = StillAndMoving(Budget(given["keep"]), given["tau"], given["beta"], int(given["K"]), int(given["most"]))
    side = math.isqrt(size)
    flat = features.flatten(0, 1)
    selection = select(attention.view(1, 1, -1), tokens(frames, side, side), flat[None])
    rows, kept = merged(selection, flat), selection.keep[0, 0].view(frames, size)
    theirs = iter(VECTOR[f"tokens_{case}"].split(VECTOR[f"counts_{case}"].tolist()))
    for first, last in cuts:
        inside = torch.zeros_like(kept)
        inside[first : last + 1] = kept[first : last + 1]
        assert same_rows(rows[inside.flatten()], next(theirs))


@pytest.mark.parametrize("case", [0, 1])
def test_same_inner_merging_as_the_authors(case: int) -> None:
    share = 1 - META["parameters"]["inner_share_dropped"][case]
    start, count = META["parameters"]["inner_image"]
    cols = torch.arange(30, dtype=torch.int32)[None, None]
    kind = torch.where((cols >= start) & (cols < start + count), IMAGE, TEXT)
    given = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([30]), kind)
    features = VECTOR["inner_features"]
    selection = Absorbed(Budget(share))(VECTOR["inner_attention"][None, None], given, features[None])
    kept = selection.keep[0, 0]
    assert kept.nonzero()[:, 0].tolist() == VECTOR[f"inner_keep_{case}"].tolist()
    assert torch.allclose(merged(selection, features)[kept], VECTOR[f"inner_hidden_{case}"], atol=1e-5)


# -- against loops -----------------------------------------------------------------------------------------------------


def moving_clip(frames: int = 7, size: int = 12, dim: int = 6, seed: int = 0) -> Tensor:
    """A clip in which some places stand still for a while: ``[F, n, d]``, float64."""
    draw = torch.Generator().manual_seed(seed)
    out = [torch.randn(size, dim, generator=draw, dtype=torch.float64)]
    for _ in range(frames - 1):
        move = (torch.rand(size, 1, generator=draw) < 0.35).double()
        new = torch.randn(size, dim, generator=draw, dtype=torch.float64)
        out.append(out[-1] * (1 - move) + new * move + 0.02 * new)
    return torch.stack(out)


def best_cut(still: list[list[bool]], frames: int, longest: int) -> int:
    """The most tokens that any cut saves, by trying all."""
    best = 0
    for count in range(frames):
        for cuts in combinations(range(1, frames), count):
            edges = [0, *cuts, frames]
            saved = 0
            for first, behind in pairwise(edges):
                if behind - first > longest:
                    saved = -1
                    break
                standing = sum(all(column) for column in zip(*still[first : behind - 1], strict=True))
                saved += (behind - first - 1) * standing if behind - first > 1 else 0
            best = max(best, saved)
    return best


@pytest.mark.parametrize("longest", [2, 3, 1024])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_segments_save_the_most(seed: int, longest: int) -> None:
    clip = moving_clip(seed=seed)
    frames, size = clip.shape[:2]
    like = [[float(cosine_similarity(clip[f, p], clip[f + 1, p], dim=0)) > 0.8 for p in range(size)] for f in range(6)]
    still = stills(clip.flatten(0, 1), torch.arange(frames * size).view(frames, size), 0.8)
    assert still.tolist() == like
    cuts, saved = segments(still, longest)
    assert [place for cut in cuts for place in range(cut[0], cut[1] + 1)] == list(range(frames))
    assert all(last - first < longest for first, last in cuts)
    told = sum(
        (last - first) * sum(all(column) for column in zip(*like[first:last], strict=True)) for first, last in cuts
    )
    assert told == saved == best_cut(like, frames, longest)


def naive(clip: Tensor, score: Tensor, keep: float, tau: float, beta: float, neighbours: int) -> dict[int, Tensor]:
    """What stays where, by loops: ``clip [F, n, d]``, ``score [F, n]``."""
    frames, size, dim = clip.shape
    like = [
        [float(cosine_similarity(clip[f, p], clip[f + 1, p], dim=0)) > tau for p in range(size)]
        for f in range(frames - 1)
    ]
    cuts, saved = segments(torch.tensor(like), 1024)
    share = min(keep * frames * size / (frames * size - saved), 1.0)
    out: dict[int, Tensor] = {}
    for first, last in cuts:
        same = [p for p in range(size) if last > first and all(like[f][p] for f in range(first, last))]
        others = [p for p in range(size) if p not in same]
        for frame in range(first, last + 1):
            best = sorted(others, key=lambda p, f=frame: -float(score[f, p]))[: math.ceil(len(others) * share)]
            out |= {frame * size + p: clip[frame, p] for p in best}
        mean = {p: clip[first : last + 1, p].mean(0) for p in same}
        count = round(len(same) * share)
        if not count:
            continue
        far = {(p, q): float((mean[p] - mean[q]).norm()) / dim**0.5 for p in same for q in same}
        dense = {}
        for p in same:
            near = sorted(far[p, q] for q in same)[: min(neighbours, count)]
            dense[p] = math.exp(-sum(one**2 for one in near) / len(near))
        reach = {p: min([far[p, q] for q in same if dense[q] > dense[p]], default=max(far.values())) for p in same}
        centres = sorted(sorted(same, key=lambda p: -dense[p] * reach[p])[:count])
        groups: dict[int, list[int]] = {centre: [] for centre in centres}
        for p in same:
            if p not in groups:
                groups[min(centres, key=lambda c, p=p: far[p, c])].append(p)
        for centre, group in groups.items():
            rest = torch.stack([mean[p] for p in group]).mean(0) if group else mean[centre]
            out[first * size + centre] = beta * mean[centre] + (1 - beta) * rest
    return out


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("keep", [0.15, 0.3, 0.6])
def test_against_loops(seed: int, keep: float) -> None:
    clip = moving_clip(seed=seed)
    score = torch.rand(7, 12, generator=torch.Generator().manual_seed(seed + 9))
    wanted = naive(clip, score, keep, 0.8, 0.6, 3)
    flat = clip.flatten(0, 1)
    selection = StillAndMoving(Budget(keep), 0.8, 0.6, 3)(score.view(1, 1, -1), tokens(7, 3, 4), flat[None])
    places = selection.keep[0, 0].nonzero()[:, 0].tolist()
    assert places == sorted(wanted)
    got = merged(selection, flat)
    assert all(torch.allclose(got[place], wanted[place], atol=1e-5) for place in places)


def test_any_order_of_tokens_and_newlines_that_stay() -> None:
    clip = moving_clip()
    score = torch.rand(7 * 12, generator=torch.Generator().manual_seed(4))
    order = torch.randperm(84, generator=torch.Generator().manual_seed(5))
    flat = torch.cat([clip.flatten(0, 1)[order], torch.full((2, 6), 9.0, dtype=torch.float64)])
    mixed = StillAndMoving(Budget(0.3))(
        torch.cat([score[order], torch.zeros(2)])[None, None], tokens(7, 3, 4, newlines=2, order=order), flat[None]
    )
    plain = StillAndMoving(Budget(0.3))(score[None, None], tokens(7, 3, 4), clip.flatten(0, 1)[None])
    assert mixed.keep[0, 0, 84:].all() and torch.equal(mixed.keep[0, 0, :84], plain.keep[0, 0][order])
    assert same_rows(
        merged(mixed, flat)[:84][mixed.keep[0, 0, :84]], merged(plain, clip.flatten(0, 1))[plain.keep[0, 0]]
    )


def test_inner_merging_by_loops() -> None:
    draw = torch.Generator().manual_seed(1)
    features, score = torch.randn(2, 14, 5, generator=draw), torch.rand(2, 1, 14, generator=draw)
    cols = torch.arange(14, dtype=torch.int32).expand(2, 1, 14)
    kind = torch.full((2, 1, 14), IMAGE)
    kind[..., :3] = TEXT
    live = torch.ones_like(kind, dtype=torch.bool)
    live[1, :, :5] = False
    given = Tokens(cols, live, live[:, 0].sum(-1), kind)
    selection = Absorbed(Budget(0.4))(score, given, features)
    assert selection.dest is not None
    rows = joined(features, selection.dest[:, 0], None, selection.weight)[0]
    for row in range(2):
        image = [place for place in range(3, 14) if bool(live[row, 0, place])]
        best = sorted(image, key=lambda place, row=row: -float(score[row, 0, place]))[: int(0.4 * len(image))]
        state = {place: features[row, place].double() for place in best}
        for place in image:
            if place not in best:
                like = {one: float(cosine_similarity(features[row, place], features[row, one], dim=0)) for one in best}
                target = max(like, key=lambda one: like[one])
                state[target] = (state[target] + features[row, place].double()) / 2
        text = [place for place in range(3) if bool(live[row, 0, place])]
        assert selection.keep[row, 0].nonzero()[:, 0].tolist() == sorted(best + text)
        assert all(torch.allclose(rows[row, place].double(), state[place], atol=1e-5) for place in best)


def test_equal_densities() -> None:
    assert peaks(torch.zeros(4, 4), 2, 2).tolist() == [0, 1]
    assert distances(torch.ones(6, 3), torch.arange(6).view(2, 3)).tolist() == [[0.0] * 3] * 3


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 512])
def test_memory_of_a_long_clip_is_that_of_a_few_frame_pairs(dim: int) -> None:
    """64 frames of 196 tokens, nearly still: four blocks of 196 x 196 floats at most beyond what is returned."""
    draw = torch.Generator().manual_seed(0)
    frames, side = 64, 14
    base = torch.randn(1, side * side, dim, generator=draw)
    drift = torch.randn(frames, side * side, dim, generator=draw) * 0.2
    drift[::16] += 2 * torch.randn(4, side * side, dim, generator=draw)
    features = (base + drift).flatten(0, 1)[None]
    score = torch.rand(1, 1, features.shape[1], generator=draw)
    given = tokens(frames, side, side)
    select = StillAndMoving(Budget(0.1), 0.8)
    places = torch.arange(frames * side * side).view(frames, -1)
    cuts, saved = segments(stills(features[0], places, 0.8), 1024)
    assert saved > 0.5 * features.shape[1] and len(cuts) > 3
    block = side**4 * 4
    made = select(score, given, features)
    returned = sum(one.nbytes for one in (made.keep, made.dest, made.weight) if one is not None)
    most = peak(lambda: select(score, given, features))
    assert block < most - returned <= 4 * block, f"{most / block:.2f} blocks, {returned / block:.2f} of them returned"


def test_memory_of_inner_merging_is_bounded() -> None:
    draw = torch.Generator().manual_seed(0)
    features, n = torch.randn(1, 6000, 16, generator=draw), 6000
    cols = torch.arange(n, dtype=torch.int32)[None, None]
    given = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([n]), torch.full_like(cols, IMAGE))
    most = peak(lambda: Absorbed(Budget(0.5))(torch.rand(1, 1, n), given, features))
    assert most <= 4 * 196**2 * 4 + 4 * features.numel() * 4 + 60 * n


# -- in models ---------------------------------------------------------------------------------------------------------


def test_a_clip_is_shortened_before_and_inside_the_model() -> None:
    vlm, inputs = video(6)
    with tithe.on(vlm, "holitom", keep=0.3, tau=-1.0, layer=2, level="kept") as run, torch.no_grad():
        vlm.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    outer, inside = run.trace.events
    assert sum(outer.seen) == 25 and sum(inside.kept) < sum(inside.seen)
    kept = outer.keep[0, 0]
    assert bool(kept[24]) and kept[:4].any() and not kept[4:24].any()
    assert sum(inside.kept) == 12 + (int(kept.sum())) // 2


def test_pictures_as_frames() -> None:
    _, run = generated("holitom", pictures([4, 3]), keep=0.25, inner=1.0, tau=0.2)
    assert [len(event.keep[0, 0]) for event in run.trace.events] == [64, 48]
    assert all(0 < sum(event.kept) < sum(event.seen) for event in run.trace.events)


def test_refusals() -> None:
    for name, value in (("neighbours", 0), ("longest", 0), ("beta", 1.2), ("keep", 0.0), ("inner", 0.0)):
        with pytest.raises(BadInput, match="out of range"):
            tithe.method("holitom", **{name: value})
    uneven = tokens(2, 2, 2)
    assert uneven.origin is not None
    uneven.origin[4:, 2] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    uneven.origin[4:, 1] = 0
    with pytest.raises(Refused, match="no frames of one video"):
        StillAndMoving(Budget(0.5))(torch.rand(1, 1, 8), uneven, torch.randn(1, 8, 3))


def test_contract() -> None:
    contract("holitom")
