"""SparseFormer: RoIs, sampling and encoding by hand in float64, the whole against the authors', what is trained."""

from __future__ import annotations

import math

import pytest
import torch
from naive import vector
from torch import Tensor, nn

from tithe.errors import BadInput
from tithe.modules import sparseformer as ours
from tithe.modules.blocks import Block
from tithe.modules.sparseformer import (
    Focus,
    Sampling,
    SparseFormer,
    Stem,
    grid_rois,
    likeness,
    moved,
    points_in,
    roi_encoding,
    sample,
)


def small(tuned: int = 1) -> SparseFormer:
    torch.manual_seed(0)
    focus = Focus(8, 2, channels=4, points=4, repeats=2, inner=6)
    blocks = [Block(12, 2, 24) for _ in range(2)]
    return SparseFormer(Stem(4), focus, blocks, nn.LayerNorm(12), torch.randn(12), side=2, tuned=tuned, inner=6)


def bilinear(feature: Tensor, x: float, y: float) -> Tensor:
    """One point of ``feature [c, h, w]``: pixel centres at halves, the border repeated."""
    height, width = feature.shape[1:]
    column, row = min(max(x * width - 0.5, 0.0), width - 1.0), min(max(y * height - 0.5, 0.0), height - 1.0)
    left, top = math.floor(column), math.floor(row)
    right, low = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = column - left, row - top
    upper = (1 - a) * feature[:, top, left] + a * feature[:, top, right]
    lower = (1 - a) * feature[:, low, left] + a * feature[:, low, right]
    return (1 - b) * upper + b * lower


def test_sampling_is_bilinear_inside_the_roi() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    roi = torch.tensor([[[0.2, 0.1, 0.6, 0.9], [-0.2, 0.5, 0.4, 1.3]]], dtype=torch.float64)
    offsets = torch.randn(1, 2, 4, 2, dtype=torch.float64)
    points = points_in(roi, offsets)
    read = sample(features, points)
    for token in range(2):
        left, top, right, bottom = roi[0, token].tolist()
        for axis, (low, high) in enumerate(((left, right), (top, bottom))):
            along = offsets[0, token, :, axis].tolist()
            mean = sum(along) / 4
            deviation = math.sqrt(sum((value - mean) ** 2 for value in along) / 3) + 1e-5
            wanted = [(low + high) / 2 + (value - mean) / (3 * deviation) * (high - low) for value in along]
            assert points[0, token, :, axis].tolist() == pytest.approx(wanted, abs=1e-12)
        for place in range(4):
            expected = bilinear(features[0], *points[0, token, place].tolist())
            torch.testing.assert_close(read[0, token, place], expected, rtol=1e-10, atol=1e-10)


def test_a_roi_moves_in_its_own_size() -> None:
    roi = torch.tensor([0.2, 0.4, 0.6, 0.6])
    got = moved(roi, torch.tensor([0.5, -1.0, math.log(2), 0.0]))
    torch.testing.assert_close(got, torch.tensor([0.6 - 0.4, 0.3 - 0.1, 0.6 + 0.4, 0.3 + 0.1]))
    torch.testing.assert_close(moved(roi, torch.zeros(4)), roi)


def test_rois_start_evenly() -> None:
    rois = grid_rois(3)
    assert rois[0].tolist() == [0, 0, 0.5, 0.5] and rois[8].tolist() == [0.5, 0.5, 1, 1]
    assert rois[1].tolist() == [0.25, 0, 0.75, 0.5] and rois[3].tolist() == [0, 0.25, 0.5, 0.75]


def test_encoding_is_of_the_four_sides() -> None:
    roi = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64, requires_grad=True)
    got = roi_encoding(roi, 16)
    rates = [128 ** (place / 3) for place in range(4)]
    wanted = []
    for side in roi.tolist():
        angles = [math.pi * side * rate for rate in rates]
        wanted += [math.sin(angles[0]), math.sin(angles[2]), math.cos(angles[1]), math.cos(angles[3])]
    assert got.tolist() == pytest.approx(wanted, abs=1e-9) and not got.requires_grad


def test_mixing_is_made_by_the_token() -> None:
    torch.manual_seed(0)
    layer = Sampling(8, channels=3, points=4, inner=6).double()
    with torch.no_grad():
        layer.weights[2].weight.normal_()
    tokens, features = torch.randn(1, 2, 8, dtype=torch.float64), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    roi = grid_rois(2)[None, :2].double()
    got = layer(tokens, roi, features)
    for token in range(2):
        made = layer.weights(tokens[0, token])
        read = sample(features, points_in(roi, layer.points.expand(1, 2, -1, -1)))[0, token]
        mixed = nn.functional.gelu(made[9:].view(32, 4) @ read @ made[:9].view(3, 3))
        torch.testing.assert_close(got[0, token], layer.out(mixed.reshape(-1)), rtol=1e-10, atol=1e-10)


def test_same_numbers_as_the_authors() -> None:
    saved, meta = vector("sparseformer")
    focus = Focus(16, meta["heads"], meta["channels"], meta["points"], meta["repeats"], meta["inner"])
    blocks, norm = [Block(24, meta["heads"], 96, eps=1e-5)], nn.LayerNorm(24)
    model = SparseFormer(Stem(6), focus, blocks, norm, torch.zeros(24), meta["side"], tuned=1, inner=meta["inner"])
    block = {"before": "norm1", "out": "attn.proj", "between": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    sampling = {
        "sampling.offset.0": "roi_offset_module.0", "sampling.offset.1": "roi_offset_module.1",
        "sampling.out": "adaptive_mixing.out_proj", "encoding.turn.0": "pe_transition.0",
        "encoding.turn.1": "pe_transition.1",
    } | {f"sampling.weights.{place}": f"adaptive_mixing.parameter_generator.{place}" for place in range(3)}  # fmt: skip
    moves = {f"move.{place}": f"roi_adjust_module.{place}" for place in (0, 1, 3)}
    names = {"focus." + mine: "layers.0." + theirs for mine, theirs in (sampling | moves).items()}
    names |= {mine: "layers.2." + theirs for mine, theirs in sampling.items()}
    names |= {"stem.conv": "feat_extractor.conv1", "widen": "layers.1.0", "norm": "norm"}
    names |= {"focus.stage": "layers.0.stage_embedding"}
    state = {"token": saved["w.initial_embedding.weight"][0], "roi": saved["w.initial_roi.weight"]}
    state |= {"start": saved["w.cls_embedding.weight"][0]}
    for mine, layer in (("focus.block.", "layers.0."), ("blocks.0.", "layers.3.")):
        names |= {mine + a: layer + b for a, b in block.items()}
        for kind in ("weight", "bias"):
            parts = saved[f"w.{layer}attn.qkv.{kind}"].chunk(3)
            state |= {f"{mine}{a}.{kind}": part for a, part in zip(("query", "key", "value"), parts, strict=True)}
    for mine, layer in (("focus.", "layers.0."), ("", "layers.2.")):
        state[f"{mine}sampling.points"] = saved[f"w.{layer}roi_offset_bias"].view(-1, 2)
    for mine, theirs in names.items():
        kinds = [kind for kind in ("weight", "bias") if f"w.{theirs}.{kind}" in saved]
        state |= {f"{mine}.{kind}": saved[f"w.{theirs}.{kind}"] for kind in kinds}
    model.load_state_dict(state)
    torch.testing.assert_close(model.stem(saved["x"]), saved["stem"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.tokens(saved["x"])[1], saved["roi"], rtol=1e-4, atol=1e-4)
    out = model(saved["x"])
    torch.testing.assert_close(out, saved["out"], rtol=1e-4, atol=1e-4)
    out.backward(saved["d_out"])
    found = {"d_roi": model.roi, "d_stem": model.stem.conv.weight, "d_move": focus.move[3].weight}
    for name, parameter in found.items():
        torch.testing.assert_close(parameter.grad, saved[name], rtol=1e-3, atol=1e-3)


def test_only_the_new_and_the_first_blocks_are_trained() -> None:
    model, images = small(tuned=1), torch.randn(2, 3, 16, 16)
    wanted = torch.randn(2, 5, 12)
    hidden = model(images)
    assert hidden.shape == (2, 5, 12)
    likeness(hidden, wanted).backward()
    assert all(p.grad is not None for p in model.blocks[0].parameters())
    assert all(p.grad is None for p in [*model.blocks[1].parameters(), *model.norm.parameters()])
    assert model.roi.grad.abs().max() > 0
    assert likeness(wanted, wanted).item() == pytest.approx(0, abs=1e-6)
    assert likeness(-wanted, wanted).item() == pytest.approx(2, abs=1e-6)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadInput, match="tuned=3 of 2"):
        small(tuned=3)


def test_card() -> None:
    card = ours.CARD
    assert (card.slug, card.arxiv, card.year) == ("sparseformer", "2312.01987", 2024)
    assert card.code == "showlab/sparseformer" and card.family == "vision" and card.hosts == ()
