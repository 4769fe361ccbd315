from __future__ import annotations

import math

import pytest
import torch
from methods.vision.contract import classifier, pixels, read, vector
from methods.vision.naive_blocks import Shown, by_hand
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.errors import Refused
from tithe.scores.blocks import cls_mean
from tithe.seams.evidence import LayerEvidence
from tithe.seams.merging import joined
from tithe.seams.stores import View
from tithe.selections.fusing import Fused, Stages
from tithe.types import IMAGE, TEXT, Tokens

VECTOR, _ = vector("evit")


def given(count: int, rows: int = 1) -> Tokens:
    cols = torch.arange(count, dtype=torch.int32).expand(rows, 1, count)
    kind = torch.where(cols == 0, TEXT, IMAGE)
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.full((rows,), count), kind)


@pytest.mark.parametrize(("block", "rate"), [(0, 0.7), (1, 0.5)])
def test_same_tokens_as_the_authors(block: int, rate: float) -> None:
    attention, before, after = (VECTOR[f"{name}_{block}"] for name in ("cls", "before", "after"))
    tokens = given(attention.shape[-1], 2)
    one = torch.ones(2, 4, 1, 1)
    shown = LayerEvidence(
        View(attention.log()[..., None], one, tokens.cols, tokens.valid), 1.0, queries=one, causal=False
    )
    chosen = Fused(Stages(rate, (0,)), 4)(cls_mean(shown), tokens)
    ours = joined(before, chosen.dest[:, 0], None, chosen.weight)[0]
    for row in range(2):
        mine = ours[row, chosen.keep[row, 0]]
        apart = torch.cdist(mine.double(), after[row].double())
        assert mine.shape == after[row].shape
        assert apart.amin(0).max() < 1e-5 and apart.amin(1).max() < 1e-5


def fusing(rate: float, fuse: bool):
    def between(block: int, x: Tensor, sizes: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        if block == 0:
            return x, sizes
        attention = [sum(float(shown.probs[h, 0, i]) for h in range(4)) / 4 for i in range(len(x))]
        left = math.ceil(rate * (len(x) - 1) - 1e-9)
        order = sorted(range(1, len(x)), key=lambda i: -attention[i])
        stays, others = order[:left], order[left:]
        made = {i: x[i] for i in [0, *stays]}
        if fuse and len(others) > 1:
            made[others[0]] = sum(attention[i] * x[i] for i in others)
        elif fuse:
            made.update({i: x[i] for i in others})
        return torch.stack([made[i] for i in sorted(made)]), torch.ones(len(made), dtype=torch.float64)

    return between


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("keep", [0.343, 0.05, 12])
def test_against_loops(keep: float | int, fuse: bool) -> None:
    images = pixels()["pixel_values"]
    rate = (keep / 36 if isinstance(keep, int) else keep) ** (1 / 3)
    wanted = [by_hand(image, fusing(rate, fuse)).logits for image in images]
    with tithe.on(classifier(), "evit", keep=keep, fuse=fuse) as run, torch.no_grad():
        logits = classifier()(**pixels()).logits
    assert torch.allclose(logits.double(), torch.stack(wanted), atol=1e-4)
    assert run.report().flops < run.report().flops_full


def test_last_one_is_not_fused_alone() -> None:
    score = torch.tensor([[[0.0, 0.3, 0.2, 0.5]]])
    chosen = Fused(Stages(2, (0,)), 4)(score, given(4))
    assert chosen.keep.all() and (chosen.dest == -1).all()


def test_needs_a_cls_token() -> None:
    from tiny_vision import VITS

    with pytest.raises(Refused, match="CLS"):
        tithe.on(VITS["siglip"](), "evit")


def test_reads_digits_that_random_patches_lose() -> None:
    ours, left = read("evit", keep=0.22)
    chance, as_many = read("random-blocks", keep=0.22, layer=4)
    assert left <= as_many + 6 and ours >= chance + 0.1


def test_contract() -> None:
    check_method("evit", classifier(), pixels())
