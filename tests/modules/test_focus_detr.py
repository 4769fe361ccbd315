"""Focus-DETR: scoring, targets, loss and encoder against the authors' code, and inside a transformers detector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import vector
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoder

from tithe.errors import BadInput
from tithe.modules import focus_detr as ours
from tithe.modules.focus_detr import FocusEncoder, Scorer, foreground, foreground_loss, foreground_targets, inside


def settings(width: int, heads: int, layers: int, levels: int) -> DeformableDetrConfig:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"][-levels:],
    )  # fmt: skip
    return DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=width,
        encoder_layers=layers, decoder_layers=2, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, num_feature_levels=levels, num_queries=5, num_labels=3,
        dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip


def starts(shapes: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([0, *[h * w for h, w in shapes]]).cumsum(0)[:-1]


def authors(saved: dict[str, Tensor], meta: dict[str, Any]) -> FocusEncoder:
    classes = nn.Linear(meta["width"], 3)
    classes.load_state_dict({"weight": saved["classes_weight"], "bias": saved["classes_bias"]})
    host = DeformableDetrEncoder(settings(meta["width"], meta["heads"], 2, 4)).eval()
    model = FocusEncoder(host, classes, meta["keep"], meta["fine"], cascade=meta["cascade"])
    names = {"project": "enc_output", "norm": "enc_output_norm"}
    names |= {"scorer.first": "scorer.layer1", "scorer.second": "scorer.layer2"}
    for place in range(2):
        mine, theirs = f"layers.{place}.", f"layers.{place}."
        names |= {
            mine + "self_attn": theirs + "attentions.1.a", mine + "self_attn_layer_norm": theirs + "norms.0",
            mine + "mlp": theirs + "ffns.0", mine + "final_layer_norm": theirs + "norms.1",
            f"enhance.{place}.attention": theirs + "attentions.0.a", f"enhance.{place}.norm": theirs + "norm2",
        }  # fmt: skip
    state = {"gains": saved["gains"]}
    for name in model.state_dict():
        for mine, theirs in names.items():
            if name.startswith(mine + "."):
                state[name] = saved[f"w.{theirs}{name[len(mine) :]}"]
    missing = model.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) == {"classes.weight", "classes.bias"} and not missing.unexpected_keys
    return model


def test_same_numbers_as_the_authors() -> None:
    saved, meta = vector("focus-detr")
    model, shapes = authors(saved, meta), [tuple(shape) for shape in meta["shapes"]]
    out = model(
        inputs_embeds=saved["hidden"], attention_mask=saved["valid"], spatial_position_embeddings=saved["positions"],
        spatial_shapes=torch.tensor(shapes), spatial_shapes_list=shapes, level_start_index=starts(shapes),
        valid_ratios=saved["valid_ratios"],
    ).last_hidden_state  # fmt: skip
    assert model.scores is not None and model.counts == [saved["chosen0"].shape[1], saved["chosen1"].shape[1]]
    lowest = float(model.scores.detach().min())
    masked = model.scores.masked_fill(~saved["valid"], lowest)
    torch.testing.assert_close(masked, saved["scores"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out, saved["memory"], rtol=1e-4, atol=1e-4)
    out.backward(saved["d_out"])
    fine = model.enhance[0].attention.in_proj_weight.grad
    torch.testing.assert_close(fine, saved["d_fine"], rtol=1e-3, atol=1e-3)


def test_targets_and_loss_of_the_authors() -> None:
    saved, meta = vector("focus-detr")
    got = foreground_targets(list(saved["boxes"]), meta["sizes"], meta["side"], meta["spans"])
    assert torch.equal(got.long(), saved["targets"].long()) and 0 < got.mean() < 1
    torch.testing.assert_close(foreground_loss(saved["pred"], got), saved["loss"], rtol=1e-4, atol=1e-4)


def test_scores_pass_from_coarse_to_fine() -> None:
    torch.manual_seed(0)
    levels, shapes = [torch.randn(1, 16, 8), torch.randn(1, 4, 8)], [(4, 4), (2, 2)]
    scorer = Scorer(8)
    got = foreground(levels, shapes, scorer, torch.tensor([0.7]))
    coarse = scorer(levels[1])
    above = torch.zeros(4, 4)
    for row in range(4):
        for column in range(4):
            y, x = row / 3, column / 3
            corners = coarse[0].view(2, 2)
            top = (1 - x) * corners[0, 0] + x * corners[0, 1]
            above[row, column] = (1 - y) * top + y * ((1 - x) * corners[1, 0] + x * corners[1, 1])
    fine = scorer(levels[0] + 0.7 * above.view(1, 16, 1) * levels[0])
    torch.testing.assert_close(got, torch.cat([fine, coarse], 1), rtol=1e-5, atol=1e-6)


def test_padding_and_proposals_too_large_do_not_count() -> None:
    valid = torch.ones(1, 4 + 1 + 4, dtype=torch.bool)
    valid[0, [1, 3]] = False
    got = inside([(2, 2), (1, 1), (2, 2)], valid)[0].tolist()
    assert got == [True, False, True, False, True, True, True, True, True]
    deep = inside([(1, 1)] * 6, torch.ones(1, 6, dtype=torch.bool))[0].tolist()
    assert deep == [True] * 5 + [False]


def detector() -> DeformableDetrForObjectDetection:
    torch.manual_seed(0)
    return DeformableDetrForObjectDetection(settings(32, 2, 2, 3)).eval()


def test_in_a_detector_all_tokens_are_the_encoder_replaced() -> None:
    model, images = detector(), torch.randn(2, 3, 64, 48)
    mask = torch.ones(2, 64, 48, dtype=torch.long)
    mask[1, :, 30:] = 0
    with torch.no_grad():
        expected = model(pixel_values=images, pixel_mask=mask).logits
        encoder = FocusEncoder(model.model.encoder, model.class_embed[-1], 1.0, fine=0, updated=True, cascade=(1, 1))
        model.model.encoder = encoder.eval()
        got = model(pixel_values=images, pixel_mask=mask).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_tokens_that_are_not_chosen_stay_as_they_are() -> None:
    model = detector()
    model.model.encoder = FocusEncoder(
        model.model.encoder, model.class_embed[-1], 0.3, fine=4, cascade=(1.0, 0.5)
    ).eval()
    seen: list[Tensor] = []
    keep = model.model.encoder.register_forward_hook(
        lambda module, given, kwargs, out: seen.extend([kwargs["inputs_embeds"], out.last_hidden_state]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(pixel_values=torch.randn(1, 3, 64, 64))
    keep.remove()
    encoder = model.model.encoder
    before, after = seen
    touched = (before != after).any(-1)[0]
    total = before.shape[1]
    assert encoder.counts == [int(total * 0.3) + 1, int((int(total * 0.3) + 1) * 0.5)]
    best = encoder.scores[0].topk(encoder.counts[0]).indices
    assert set(touched.nonzero().flatten().tolist()) == set(best.tolist())


def test_wrong_input_is_refused() -> None:
    host = DeformableDetrEncoder(settings(16, 2, 2, 3))
    with pytest.raises(BadInput, match="keep=0"):
        FocusEncoder(host, nn.Identity(), keep=0)
    with pytest.raises(BadInput, match=r"cascade=\(1.0,\) for 2"):
        FocusEncoder(host, nn.Identity(), cascade=(1.0,))


def test_card() -> None:
    card = ours.CARD
    assert (card.slug, card.arxiv, card.year) == ("focus-detr", "2307.12612", 2023)
    assert card.code == "huawei-noah/noah-research" and card.family == "vision" and card.hosts == ()
