from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import tiny_vim
import torch
from methods.vision.contract import CASES, classifier
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

import tithe
from tithe.bench.tasks import canvas
from tithe.check import check_method
from tithe.errors import Refused
from tithe.modules.vim import VimScan
from tithe.scores.scan import clipped
from tithe.seams.visionscan import TokensLeft
from tithe.types import Saving, Selection, Step
from tithe.zoo.loader import load

if TYPE_CHECKING:
    from tithe.seams.visionscan import VisionScanSeam


def scanned(scan: VimScan, x: Tensor, there: Tensor) -> Tensor:
    """One scan over all places ``[T, inner]`` in the scan's order, ``there [T]`` saying which hold a token."""
    taps = scan.conv.kernel_size[0]
    x = x * there[:, None]
    fed = silu(scan.conv(pad(x.T[None], (taps - 1, 0)))[0].T) * there[:, None]
    raw, b, c = scan.select(fed).split([scan.rank, scan.states, scan.states], -1)
    step = softplus(scan.step(raw))
    state, out = torch.zeros(x.shape[1], scan.states, dtype=x.dtype), []
    for t in range(len(x)):
        state = (-step[t, :, None] * scan.rates.exp()).exp() * state + step[t, :, None] * b[t] * fed[t, :, None]
        out.append(state @ c[t] + scan.skip * fed[t])
    return torch.stack(out)


@torch.no_grad()
def by_places(model: Any, image: Tensor, rate: float, stages: tuple[int, ...], clip: bool, decay: bool) -> Tensor:
    """The whole model on every place: tokens that left are empty in all scans, or (not ``decay``) no place of them."""
    hidden = model.embed(image[None])[0]
    there = torch.ones(len(hidden), dtype=hidden.dtype)
    for index, layer in enumerate(model.layers):
        x, gate = layer.mixer.in_proj(layer.norm(hidden)).chunk(2, -1)
        forward, backward = layer.mixer.scans
        seen = torch.ones_like(there, dtype=torch.bool) if decay else there > 0
        short, flags = x[seen], there[seen]
        given = [torch.zeros_like(x), torch.zeros_like(x)]
        given[0][seen] = scanned(forward, short, flags)
        given[1][seen] = scanned(backward, short.flip(0), flags.flip(0)).flip(0)
        hidden = hidden + layer.mixer.out_proj(sum(given) * silu(gate))
        if index in stages:
            worth = [
                sum(max(float(v), 0.0) if clip else float(v) for y in given for v in y[i]) for i in range(len(hidden))
            ]
            held = [i for i in range(len(hidden)) if there[i] and i != model.cls_place]
            leave = sorted(held, key=lambda i: -worth[i])[math.ceil(rate * len(held) - 1e-9) :]
            there[leave] = 0
    return model.classifier(model.norm(hidden[model.cls_place]))


@pytest.mark.parametrize(("clip", "decay"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("keep", [0.512, 0.2, 3])
def test_against_scans_token_by_token(keep: float | int, clip: bool, decay: bool) -> None:
    model = tiny_vim.vim()
    rate = (keep / 16 if isinstance(keep, int) else keep) ** 0.5
    chosen = tithe.method("ssm-token-pruning", keep=keep, clip=clip, decay=decay, layer=(0, 2))
    with tithe.on(model, chosen) as run, torch.no_grad():
        logits = model(**tiny_vim.pixels()).logits
    wide = tiny_vim.vim().double()
    wanted = torch.stack(
        [by_places(wide, image.double(), rate, (0, 2), clip, decay) for image in tiny_vim.pixels()["pixel_values"]]
    )
    tiny_vim.vim().float()
    assert torch.allclose(logits.double(), wanted, atol=1e-4)
    assert run.report().flops < run.report().flops_full


def test_decay_is_another_scan() -> None:
    out = []
    for decay in (True, False):
        with tithe.on(tiny_vim.vim(), "ssm-token-pruning", keep=0.4, decay=decay), torch.no_grad():
            out.append(tiny_vim.vim()(**tiny_vim.pixels()).logits)
    assert (out[0] - out[1]).abs().max() > 1e-2


def test_clipped_activity() -> None:
    given = torch.tensor([[[[1.0, -3.0], [2.0, 0.0]], [[0.0, 4.0], [-1.0, -1.0]]]])
    assert clipped(given).tolist() == [[[2.5, 1.0]]] and clipped(given, clip=False).tolist() == [[[1.0, 0.0]]]


@cache
def canvases() -> tuple[Any, Any, Tensor]:
    """The trained model, its inputs, and the digit of each quadrant."""
    vim, processor = load("vim")
    cases = [canvas.digits_case(seed, "test") for seed in range(CASES)]
    inputs = processor(images=[Image.fromarray(case.image) for case in cases], return_tensors="pt")
    return vim, inputs, torch.from_numpy(np.stack([case.labels for case in cases]))


def read(method: Any) -> float:
    """The share of digits that the trained model reads."""
    vim, inputs, labels = canvases()
    with tithe.on(vim, method), torch.no_grad():
        logits = vim(**inputs).logits
    hit = logits.view(len(labels), 4, -1).argmax(-1) == labels
    return hit[labels != canvas.EMPTY].float().mean().item()


@pytest.mark.parametrize("keep", [0.5, 0.33, 0.22])
def test_reads_digits_that_random_patches_lose(keep: float) -> None:
    ours = read(tithe.method("ssm-token-pruning", keep=keep))
    assert ours >= read(tithe.method("random-scans", keep=keep)) + 0.1


@dataclass(frozen=True)
class Relabelled:
    """Tokens left stand in the order of a hash, as where they are cut out by rank; CLS keeps its place."""

    saving: Saving = "real"

    def apply(self, state: Any, selection: Selection) -> None:
        state.leave(selection, False)
        hidden = state.hidden
        slots = torch.arange(hidden.shape[1])
        others = slots[slots != hidden.shape[1] // 2]
        slots[others] = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
        middle = (state._seam.places == state._seam.cls).int().argmax(-1)
        rows = torch.arange(len(hidden))
        swapped = slots.repeat(len(hidden), 1)
        at = (swapped == middle[:, None]).int().argmax(-1)
        swapped[rows, at], swapped[rows, middle] = swapped[rows, middle].clone(), middle
        state.hidden = hidden[rows[:, None], swapped]


def test_order_matters() -> None:
    """What the paper sets out from: tokens left in another order are scanned wrongly."""
    plain = tithe.method("ssm-token-pruning", keep=0.5)
    mixed = replace(plain, steps=tuple(relabelled(step) for step in plain.steps))
    assert read(plain) >= read(mixed) + 0.3


def relabelled(step: Step) -> Step:
    per_layer = step.per_layer
    assert per_layer is not None
    return replace(step, per_layer=lambda at, layers: replace(per_layer(at, layers), action=Relabelled()))


def test_it_is_for_scans_and_others_are_not() -> None:
    with pytest.raises(Refused, match="vssm"):
        tithe.on(classifier(), "ssm-token-pruning")
    with pytest.raises(Refused, match="vssm"):
        tithe.on(tiny_vim.vim(), "tome")


def test_ragged_rows_are_refused() -> None:
    state = TokensLeft(cast("VisionScanSeam", None), torch.zeros(2, 3, 4))
    keep = torch.tensor([[[True, True, False]], [[True, True, True]]])
    with pytest.raises(Refused, match="one by one"):
        state.leave(Selection(keep, torch.zeros(2, 1, 3, dtype=torch.int32)), False)


def test_contract() -> None:
    check_method("ssm-token-pruning", tiny_vim.vim(), tiny_vim.pixels())
