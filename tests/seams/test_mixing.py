"""Inside vision blocks: tokens made of several by a matrix, what patches are given back, steps that follow a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vision import EYE
from torch import Tensor
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTModel

import tithe
from tithe.actions.keep import Keep
from tithe.actions.merge import Merge
from tithe.actions.transform import Transform
from tithe.catalogue import card
from tithe.types import Method, Need, Selection, Site, Step, Tokens

ABOUT: dict[str, Any] = {
    "title": "A test",
    "year": 2024,
    "family": "vision",
    "hosts": ("vit",),
    "fidelity": "definition",
    "saving": "real",
    "mechanism": "A test.",
}


def pairs(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Every fourth slot but the first joins the one before it: ``keep`` and ``dest``, both ``[B, n]``."""
    place = torch.arange(tokens.cols.shape[-1]).expand(len(tokens.cols), -1)
    joins = (place % 4 == 3) & tokens.valid[:, 0]
    return tokens.valid[:, 0] & ~joins, torch.where(joins, place - 1, -1)


def method(action: Any, select: Any, layers: tuple[int, ...] = (0, 1)) -> Method:
    @card(slug="mixing", **ABOUT)
    def build() -> Step:
        return Step(
            Site("block", tower="image", layer=layers),
            score=lambda evidence, tokens: torch.zeros(tokens.cols.shape),
            select=select,
            action=action,
            needs=(Need("queries", tower="image"),),
        )

    return build()


def merged(score: Tensor, tokens: Tokens) -> Selection:
    keep, dest = pairs(tokens)
    return Selection(keep[:, None], tokens.cols, dest[:, None])


def mixed(score: Tensor, tokens: Tokens) -> Selection:
    """The same merge as a matrix, for tokens that count one patch each."""
    keep, dest = pairs(tokens)
    mix = torch.diag_embed(keep.float())
    rows, slots = (dest >= 0).nonzero(as_tuple=True)
    mix[rows, dest[rows, slots], slots] = 1.0
    return Selection(keep[:, None], tokens.cols, mix=mix / mix.sum(-1, keepdim=True).clamp(min=1e-9))


def vit() -> ViTModel:
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**EYE, image_size=16), add_pooling_layer=False).eval()


def dino() -> Dinov2ForImageClassification:
    torch.manual_seed(0)
    return Dinov2ForImageClassification(Dinov2Config(**EYE, image_size=16, num_labels=5)).eval()


def images(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("proportional", [True, False])
def test_a_merge_is_a_matrix(proportional: bool) -> None:
    for model in (vit(), dino()):
        with tithe.on(model, method(Merge(proportional), merged, (0,))):
            wanted = model(images())[0]
        with tithe.on(model, method(Transform(proportional), mixed, (0,))) as run:
            got = model(images())[0]
        assert torch.allclose(got, wanted, atol=1e-5) and run.report().flops < run.report().flops_full


@torch.no_grad()
def test_patches_are_given_back_by_columns() -> None:
    """Every token becomes an average of two neighbours, half of them stay: a patch gets the mean of where it went."""

    def halves(score: Tensor, tokens: Tokens) -> Selection:
        n = tokens.cols.shape[-1]
        mix = torch.zeros(len(tokens.cols), n, n)
        mix[:, 0, 0] = 1.0
        for i in range(1, n):
            mix[:, i, i] = mix[:, i, 1 + i % (n - 1)] = 0.5
        keep = torch.zeros_like(tokens.valid[:, 0])
        keep[:, 0] = keep[:, 1::2] = True
        return Selection(keep[:, None], tokens.cols, mix=mix)

    model, seen = dino(), []
    model.dinov2.layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with tithe.on(model, method(Transform(), halves, (2,))):
        model(images())
    made = seen[0]
    assert made.shape[1] == 17
    for i in range(1, 16, 2):
        assert torch.allclose(made[:, i], made[:, i + 1], atol=1e-6)
    assert not torch.allclose(made[:, 1], made[:, 3], atol=1e-3)


@torch.no_grad()
def test_sizes_are_conserved() -> None:
    with tithe.on(vit(), method(Transform(True), mixed)) as run:
        run.host.model(images())
        assert torch.allclose(run.tower.blocks.size.sum(-1), torch.full((2,), 17.0))
        assert torch.allclose(run.tower.blocks.spread.sum(-1), torch.ones(2, 17))


@torch.no_grad()
def test_no_matrix_is_a_drop() -> None:
    def dropped(score: Tensor, tokens: Tokens) -> Selection:
        return Selection(pairs(tokens)[0][:, None], tokens.cols)

    model = vit()
    with tithe.on(model, method(Transform(), dropped)):
        got = model(images()).last_hidden_state
    with tithe.on(model, method(Keep(), dropped)):
        assert torch.equal(got, model(images()).last_hidden_state)


@torch.no_grad()
def test_a_second_step_sees_what_the_first_left() -> None:
    """Attention of the block among the tokens left, their keys, and the stream as it is by then."""
    seen: dict[str, Any] = {}

    def first(evidence: Any, tokens: Tokens) -> Tensor:
        seen["all"] = (evidence.here.probs().clone(), evidence.here.keys, evidence.here.hidden)
        return torch.zeros(tokens.cols.shape)

    def second(evidence: Any, tokens: Tokens) -> Tensor:
        seen["left"] = (evidence.here.probs(), evidence.here.keys, evidence.here.hidden, tokens.cols)
        return torch.zeros(tokens.cols.shape)

    def ragged(score: Tensor, tokens: Tokens) -> Selection:
        keep = tokens.valid.clone()
        keep[0, 0, 3:9], keep[1, 0, 5] = False, False
        return Selection(keep, tokens.cols)

    @card(slug="twice", **ABOUT)
    def build() -> tuple[Step, Step]:
        common: dict[str, Any] = {"action": Keep(), "needs": (Need("queries", tower="image"),)}
        site = Site("block", tower="image", layer=0)
        stay = Step(site, score=second, select=lambda score, tokens: Selection(tokens.valid, tokens.cols), **common)
        return Step(site, score=first, select=ragged, **common), stay

    with tithe.on(vit(), build()) as run:
        run.host.model(images())
    probs, keys, hidden = seen["all"]
    left_probs, left_keys, left_hidden, cols = seen["left"]
    for row, gone in ((0, set(range(3, 9))), (1, {5})):
        stays = [i for i in range(17) if i not in gone]
        count = len(stays)
        assert cols[row, 0, :count].tolist() == stays
        among = probs[row, :, :, stays][..., stays]
        assert torch.allclose(left_probs[row, :, :, :count, :count], among / among.sum(-1, keepdim=True), atol=1e-5)
        assert torch.equal(left_keys[row, :, :count], keys[row][:, stays])
        assert torch.equal(left_hidden[row, :count], hidden[row, stays])
