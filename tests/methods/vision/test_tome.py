from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from methods.vision.contract import by_loops, classifier, pixels, read
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.errors import BadInput, ScoreError


def merging(joined: list[int]):
    """Bipartite soft matching by loops, ``joined[block]`` tokens in each block."""

    def between(block: int, x: Tensor, sizes: Tensor, keys: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        unit = keys / keys.norm(dim=-1, keepdim=True)
        edges = []
        for a in range(2, len(x), 2):
            likeness = [(float(unit[a] @ unit[b]), -b) for b in range(1, len(x), 2)]
            best, b = max(likeness)
            edges.append((best, -a, -b))
        edges.sort(reverse=True)
        sums = {place: x[place] * sizes[place] for place in range(len(x))}
        grown = {place: float(sizes[place]) for place in range(len(x))}
        for _, a, b in edges[: min(joined[block], (len(x) - 1) // 2)]:
            sums[b] = sums[b] + sums.pop(-a)
            grown[b] += grown.pop(-a)
        return torch.stack([sums[p] / grown[p] for p in sorted(sums)]), torch.tensor([grown[p] for p in sorted(grown)])

    return between


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize(
    ("keep", "schedule", "joined"),
    [(16, "constant", [5, 5, 5, 5]), (12, "decreasing", [12, 8, 4, 0]), (1, "constant", [9, 9, 8, 5])],
)
def test_against_loops(keep: int, schedule: str, joined: list[int], proportional: bool) -> None:
    wanted = by_loops(pixels()["pixel_values"], merging(joined), weighed=proportional)
    chosen = tithe.method("tome", keep=keep, schedule=schedule, proportional=proportional)
    with tithe.on(classifier(), chosen) as run, torch.no_grad():
        logits = classifier()(**pixels()).logits
    left = [37 - sum(joined[: n + 1]) for n in range(4)]
    assert [event.kept for event in run.trace.events] == [(float(n),) * 3 for n in left]
    assert torch.allclose(logits.double(), torch.stack(wanted), atol=1e-4)
    assert run.report().flops < run.report().flops_full


def test_every_patch_is_in_one_token_and_cls_in_none() -> None:
    with tithe.on(classifier(), "tome", keep=4) as run, torch.no_grad():
        classifier()(**pixels())
        seam = run.tower.blocks
        assert seam.size.sum(-1).tolist() == [37.0] * 3 and seam.size[:, 0].tolist() == [1.0] * 3
        assert (seam.place >= 0).all() and (seam.place[:, 0] == 0).all() and (seam.place[:, 1:] > 0).all()


def test_it_compares_and_scores_nothing() -> None:
    with tithe.on(classifier(), "tome", keep=4, level="scores") as run, torch.no_grad():
        classifier()(**pixels())
    assert all(event.scores is None and event.dest is not None for event in run.trace.events)


def test_keys_that_are_not_finite_are_refused() -> None:
    broken = deepcopy(classifier())
    broken.vit.layers[1].attention.k_proj.bias.data[0] = torch.inf
    with tithe.on(broken, "tome"), torch.no_grad(), pytest.raises(ScoreError, match="tome: features at image layer 1"):
        broken(**pixels())


def test_schedule_is_known() -> None:
    with pytest.raises(BadInput, match="constant"):
        tithe.method("tome", schedule="constnt")


def test_reads_digits_that_random_patches_lose() -> None:
    merged, left = read("tome", keep=18)
    dropped, as_many = read("random-blocks", keep=18, layer=2)
    assert left <= as_many + 3
    assert merged >= read(None)[0] - 0.05 and merged >= dropped + 0.2


def test_contract() -> None:
    check_method("tome", classifier(), pixels())
