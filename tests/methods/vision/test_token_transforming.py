from __future__ import annotations

import math

import pytest
import torch
from methods.vision.contract import classifier, pixels, read
from methods.vision.naive_blocks import Shown, by_hand
from tiny_vision import EYE
from torch import Tensor
from transformers import Dinov2Config, Dinov2ForImageClassification

import tithe
from tithe.check import check_method
from tithe.errors import BadInput

HALF = {1: 1 / 3, 2: 2 / 3, 3: 1.0}


def transforming(keep: float, form: str, temperature: float, weighed: bool):
    """The matrix, entry by entry, after blocks 1, 2 and 3 of 4."""

    def between(block: int, x: Tensor, sizes: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        if block not in HALF:
            return x, sizes
        end = math.floor(36 * keep + 1e-9)
        target = round(36 * (end / 36) ** HALF[block])
        if target >= len(x) - 1:
            return x, sizes
        attention = shown.probs[:, 0].mean(0)
        stays = sorted(sorted(range(1, len(x)), key=lambda i: -float(attention[i]))[:target])
        keys = shown.keys.mean(0)
        unit = keys / keys.norm(dim=-1, keepdim=True)
        matrix = torch.zeros(len(x), len(x), dtype=torch.float64)
        matrix[0, 0] = 1
        for j in range(1, len(x)):
            if form == "prune" or (form == "merge" and j in stays):
                matrix[j, j] = float(j in stays)
            elif form == "merge":
                matrix[max(stays, key=lambda i: float(unit[i] @ unit[j])), j] = 1
            else:
                weights = {i: math.exp(float(unit[i] @ unit[j]) / temperature) for i in stays}
                for i in stays:
                    matrix[i, j] = weights[i] / sum(weights.values())
        kept = [0, *stays]
        made = torch.stack([matrix[i] @ x / matrix[i].sum() for i in kept])
        share = torch.stack([matrix[i] / matrix[i].sum() for i in kept])
        share = share / share.sum(0).clamp(min=1e-30)
        return made, share @ sizes if weighed else torch.ones(len(kept), dtype=torch.float64)

    return between


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize(("form", "temperature"), [("prune", 1.0), ("merge", 1.0), ("many", 0.1), ("many", 0.5)])
def test_against_loops(form: str, temperature: float, weighed: bool) -> None:
    images = pixels()["pixel_values"]
    wanted = [by_hand(image, transforming(0.3, form, temperature, weighed)).logits for image in images]
    chosen = tithe.method("token-transforming", keep=0.3, form=form, temperature=temperature, proportional=weighed)
    with tithe.on(classifier(), chosen) as run, torch.no_grad():
        logits = classifier()(**pixels()).logits
    assert torch.allclose(logits.double(), torch.stack(wanted), atol=1e-4)
    assert run.trace.events[-1].kept == (11.0,) * 3 and run.report().flops < run.report().flops_full


def logits(**params: object) -> Tensor:
    with tithe.on(classifier(), "token-transforming", keep=0.3, **params), torch.no_grad():
        return classifier()(**pixels()).logits


def test_near_no_temperature_it_merges() -> None:
    assert torch.allclose(logits(temperature=1e-4), logits(form="merge"), atol=1e-5)
    assert not torch.allclose(logits(temperature=0.1), logits(form="merge"), atol=1e-3)


def test_every_patch_is_given_back() -> None:
    """A tower that is averaged over its patches: each gets what it went to, and shares sum to one."""
    torch.manual_seed(0)
    model = Dinov2ForImageClassification(Dinov2Config(**EYE, image_size=16, num_labels=5)).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = []
    model.dinov2.layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with tithe.on(model, "token-transforming", keep=0.5) as run, torch.no_grad():
        model(images)
        spread = run.tower.blocks.spread
    assert seen[0].shape[1] == 17 and spread.shape[:2] == (2, 17) and spread.shape[2] == 9
    assert torch.allclose(spread.sum(-1), torch.ones(2, 17)) and (spread > 0).sum() > 100


def test_arguments_are_checked() -> None:
    with pytest.raises(BadInput, match="many"):
        tithe.method("token-transforming", form="manny")
    with pytest.raises(BadInput, match="temperature"):
        tithe.method("token-transforming", temperature=0.0)


@pytest.mark.parametrize("keep", [0.33, 0.22])
def test_reads_digits_that_random_patches_lose(keep: float) -> None:
    ours, left = read("token-transforming", keep=keep)
    chance, as_many = read("random-blocks", keep=keep, layer=3)
    assert left <= as_many and ours >= chance + 0.1


def test_contract() -> None:
    check_method("token-transforming", classifier(), pixels())
