from __future__ import annotations

import math

import pytest
import torch
from methods.vision.contract import classifier, pixels, read
from methods.vision.naive_blocks import Shown, by_hand
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.errors import BadInput
from tithe.scores.graph import informative, page_rank

VARIANCE = (0.01, 0.7)


def importance(probs: Tensor, votes: int, uniform: bool, variance: tuple[float, float] = VARIANCE) -> list[float]:
    """Weighted PageRank, the filter of heads and their root mean square, by loops over ``probs [H, n, n]``."""
    heads, n, _ = probs.shape
    told = []
    for h in range(heads):
        rank = [(1.0 if uniform or i else math.sqrt(n)) / n for i in range(n)]
        for _ in range(votes):
            rank = [sum(float(probs[h, j, i]) * rank[j] for j in range(n)) for i in range(n)]
        mean = sum(rank[1:]) / (n - 1)
        rank = [r / mean for r in rank]
        spread = sum((r - 1) ** 2 for r in rank[1:]) / (n - 1)
        told.append((variance[0] <= spread <= variance[1], rank))
    heard = [rank for fits, rank in told if fits] or [rank for _, rank in told]
    return [math.sqrt(sum(rank[i] ** 2 for rank in heard) / len(heard)) for i in range(n)]


def pruning(keep: float, similar: int, uniform: bool):
    """S-stage and I-stage after blocks 0, 1, 2, 3 of 4; the last two shares of the path both fall on block 3."""
    path = {0: 0.05, 1: 0.2, 2: 0.46, 3: 1.0}

    def between(block: int, x: Tensor, sizes: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        end = math.floor(36 * keep + 1e-9)
        target = max(1, round(36 * (end / 36) ** path[block]))
        first = importance(shown.probs, 1, uniform)
        order = sorted(range(1, len(x)), key=lambda i: first[i])
        lower, upper = order[: len(order) // 2], order[len(order) // 2 :]
        unit = shown.keys.transpose(0, 1).flatten(1)
        unit = unit / unit.norm(dim=-1, keepdim=True)
        likeness = {a: max(float(unit[a] @ unit[b]) for b in upper) for a in lower}
        gone = sorted(lower, key=lambda a: -likeness[a])[: max(0, min(similar, len(order) - target))]
        left = [i for i in range(len(x)) if i not in gone]
        probs = shown.probs[:, left][:, :, left]
        votes = {0: 30, 1: 5, 2: 5, 3: 1}[block]
        second = importance(probs / probs.sum(-1, keepdim=True), votes, uniform)
        best = sorted(range(1, len(left)), key=lambda i: -second[i])[:target]
        stays = [left[i] for i in sorted([0, *best])]
        return x[stays], sizes[stays]

    return between


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("keep", "similar"), [(0.34, 2), (0.12, 4), (0.6, 0)])
def test_against_loops(keep: float, similar: int, uniform: bool) -> None:
    images = pixels()["pixel_values"]
    wanted = [by_hand(image, pruning(keep, similar, uniform)).logits for image in images]
    chosen = tithe.method("zero-tprune", keep=keep, similar=similar, uniform=uniform, variance=VARIANCE)
    with tithe.on(classifier(), chosen) as run, torch.no_grad():
        logits = classifier()(**pixels()).logits
    assert torch.allclose(logits.double(), torch.stack(wanted), atol=1e-4)
    assert run.trace.events[-1].kept == (1.0 + math.floor(36 * keep + 1e-9),) * 3


def test_path_is_that_of_the_paper_for_deit_s() -> None:
    """From 196 patches its setting leaves 186, 158, 118, 75 and 65."""
    from tithe.budget import Budget
    from tithe.methods.vision.zero_tprune import PATH
    from tithe.selections.pace import Pace
    from tithe.types import IMAGE, TEXT, Tokens

    cols = torch.arange(197, dtype=torch.int32)[None, None]
    kind = torch.where(cols == 0, TEXT, IMAGE)
    tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([197]), kind)
    left = [int(Pace(Budget(65), share).left(tokens)) for share in PATH]
    listed, held = [], 196
    for rate in (1, 0.9, 0.8, 0.7, 1):
        held = round((held - 10) * rate)
        listed.append(held)
    assert all(abs(a - b) <= 3 for a, b in zip(left, listed, strict=True))


def test_rank_settles_at_the_stationary_distribution() -> None:
    graph = torch.rand(1, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rank = page_rank(graph, torch.full((1, 9), 1 / 9, dtype=torch.float64), 60)
    assert torch.allclose((rank[:, :, None] @ graph)[:, :, 0], rank) and torch.allclose(
        rank.sum(-1), torch.ones(1, 2).double()
    )


def test_heads_outside_the_variance_are_not_heard() -> None:
    ranks = torch.tensor([[[1.0, 1.0, 1.0], [0.5, 1.5, 1.0], [3.0, 0.0, 0.0]]])
    among = torch.ones(1, 3, dtype=torch.bool)
    assert torch.allclose(informative(ranks, among, VARIANCE), ranks[:, 1])
    assert torch.allclose(informative(ranks[:, ::2], among, VARIANCE), ranks[:, ::2].square().mean(1).sqrt())


def test_numbers_are_checked() -> None:
    with pytest.raises(BadInput, match="variance"):
        tithe.method("zero-tprune", variance=(0.7, 0.01))


@pytest.mark.parametrize("keep", [0.33, 0.22])
def test_reads_digits_that_random_patches_lose(keep: float) -> None:
    ours, left = read("zero-tprune", keep=keep)
    chance, as_many = read("random-blocks", keep=keep, layer=2)
    assert left <= as_many and ours >= chance + 0.15


def test_contract() -> None:
    check_method("zero-tprune", classifier(), pixels())
