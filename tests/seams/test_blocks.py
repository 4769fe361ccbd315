"""Dropping and merging inside vision blocks, against a plain loop over images in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_vision import EYE, VITS
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

import tithe
from tithe.actions.keep import Keep
from tithe.actions.merge import Merge
from tithe.catalogue import card
from tithe.hosts import find
from tithe.types import IMAGE, Need, Selection, Site, Step, Tokens

NAMES = {
    "vit": ("layernorm_before", "attention", "layernorm_after", ""),
    "dinov2": ("norm1", "attention", "norm2", "layer_scale"),
    "clip": ("layer_norm1", "self_attn", "layer_norm2", ""),
    "siglip": ("layer_norm1", "self_attn", "layer_norm2", ""),
}
ABOUT: dict[str, Any] = {
    "title": "A test",
    "year": 2024,
    "family": "vision",
    "hosts": ("vit",),
    "fidelity": "definition",
    "saving": "real",
    "mechanism": "A test.",
}
Cut = Callable[[Tensor, int, bool], tuple[list[int], dict[int, int]]]


def removed(row: int, ragged: bool, r: int) -> int:
    return r + 2 * row if ragged else r


def matched(similarity: Tensor, r: int, cls: bool) -> tuple[list[int], dict[int, int]]:
    """Join the r even tokens that are most like an odd one to it; return what stays, and who joins whom."""
    n = len(similarity)
    edges = []
    for a in range(2 if cls else 0, n, 2):
        best = max(range(1, n, 2), key=lambda b: float(similarity[a, b]))
        edges.append((-float(similarity[a, best]), a, best))
    joins = {a: b for _, a, b in sorted(edges)[:r]}
    return [i for i in range(n) if i not in joins], joins


def weakest(similarity: Tensor, r: int, cls: bool) -> tuple[list[int], dict[int, int]]:
    """Drop the r tokens least like all others."""
    total = similarity.sum(-1)
    order = sorted(range(1 if cls else 0, len(total)), key=lambda i: float(total[i]))
    return sorted(set(range(len(total))) - set(order[:r])), {}


def chosen(similarity: Tensor, tokens: Tokens, cut: Cut, r: int, ragged: bool) -> Selection:
    keep = torch.zeros_like(tokens.valid)
    dest = torch.full(tokens.valid.shape, -1)
    assert tokens.kind is not None
    for row in range(len(similarity)):
        live = int(tokens.valid[row].sum())
        cls = bool((tokens.kind[row, 0, :live] != IMAGE).any())
        stays, joins = cut(similarity[row, :live, :live], removed(row, ragged, r), cls)
        keep[row, 0, stays] = True
        for a, b in joins.items():
            dest[row, 0, a] = b
    return Selection(keep, tokens.cols, dest)


def likeness(keys: Tensor) -> Tensor:
    """Cosine of keys ``[B, H, n, d]``, mean over heads: ``[B, n, n]``."""
    mean = normalize(keys.mean(1), dim=-1)
    return mean @ mean.transpose(1, 2)


def method(action: Any, cut: Cut, r: int, ragged: bool = False, layer: int | tuple[int, ...] | None = None) -> Any:
    """A method that cuts in every block, by the keys of that block."""

    @card(slug="block-cut", **ABOUT)
    def build() -> Step:
        return Step(
            Site("block", tower="image", layer=layer),
            score=lambda evidence, tokens: likeness(evidence.here.keys),
            select=lambda score, tokens: chosen(score, tokens, cut, r, ragged),
            action=action,
            needs=(Need("queries", tower="image"),),
        )

    return build()


def reference(
    name: str, model: PreTrainedModel, pixels: Tensor, cut: Cut, r: int, ragged: bool, weighed: bool
) -> list[Tensor]:
    """Run every image alone through the blocks written out; return its tokens ``[n, d]`` after the last norm."""
    norm1, attention, norm2, scale = NAMES[name]
    model = copy.deepcopy(model).double()
    host = find(model)
    assert host.vision is not None
    parts: dict[str, nn.Module] = dict(model.named_children())
    start = model.embeddings(pixels.double())  # type: ignore[operator]
    start = parts["pre_layrnorm"](start) if "pre_layrnorm" in parts else start
    last = parts.get("layernorm") or (parts["post_layernorm"] if name == "siglip" else nn.Identity())
    heads = EYE["num_attention_heads"]
    images = []
    for row in range(len(start)):
        x, size = start[row], torch.ones(start.shape[1], dtype=torch.double)
        for block in host.vision.layers:
            f = dict(block.named_modules())

            def out(h: Tensor, part: str) -> Tensor:
                return f[f"{attention}.{part}"](h).view(len(h), heads, -1).transpose(0, 1)

            h = f[norm1](x)
            q, k, v = (out(h, part) for part in ("q_proj", "k_proj", "v_proj"))
            logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
            mixed = (logits + (size.log() if weighed else 0)).softmax(-1) @ v
            mixed = mixed.transpose(0, 1).reshape(len(h), -1)
            projected = f.get(f"{attention}.o_proj") or f[f"{attention}.out_proj"]
            attended = projected(mixed)
            x = x + (f[scale + "1"](attended) if scale else attended)
            stays, joins = cut(likeness(k[None])[0], removed(row, ragged, r), host.vision.cls)
            new, new_size = x.clone() * size[:, None], size.clone()
            for a, b in joins.items():
                new[b] += x[a] * size[a]
                new_size[b] += size[a]
            x, size = (new / new_size[:, None])[stays], new_size[stays]
            y = f["mlp"](f[norm2](x))
            x = x + (f[scale + "2"](y) if scale else y)
        images.append(last(x))
    return images


@pytest.fixture(scope="module", params=VITS)
def host(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    return request.param, VITS[request.param]()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


CUTS = {
    "merge": (matched, lambda: Merge(proportional=False), False),
    "merge, proportional": (matched, lambda: Merge(proportional=True), True),
    "drop": (weakest, Keep, False),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_tokens_are_those_of_the_blocks_written_out(
    host: tuple[str, PreTrainedModel], pixels: Tensor, cut: str, ragged: bool, attention: str
) -> None:
    name, model = host
    model.set_attn_implementation(attention)
    rule, action, weighed = CUTS[cut]
    with torch.no_grad():
        with tithe.on(model, method(action(), rule, 1, ragged)):
            got = model(pixel_values=pixels).last_hidden_state
        want = reference(name, model, pixels, rule, 1, ragged, weighed)
    counts = [len(image) for image in want]
    assert got.shape[1] == max(counts)
    assert (len(set(counts)) > 1) == ragged
    for row, image in enumerate(want):
        assert float((got[row, : len(image)] - image).abs().max()) < 3e-5


@pytest.mark.parametrize("cut", CUTS)
def test_nothing_removed_is_bit_identical(host: tuple[str, PreTrainedModel], pixels: Tensor, cut: str) -> None:
    _, model = host
    rule, action, _ = CUTS[cut]
    with torch.no_grad():
        plain = model(pixel_values=pixels).last_hidden_state
        with tithe.on(model, method(action(), rule, 0)):
            assert torch.equal(model(pixel_values=pixels).last_hidden_state, plain)
        with tithe.on(model, method(action(), rule, 3)):
            assert model(pixel_values=pixels).last_hidden_state.shape[1] < plain.shape[1]
        assert torch.equal(model(pixel_values=pixels).last_hidden_state, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in find(model).vision.tower.modules())  # type: ignore[union-attr]


def test_a_second_run_starts_afresh(host: tuple[str, PreTrainedModel], pixels: Tensor) -> None:
    _, model = host
    with torch.no_grad(), tithe.on(model, method(Merge(), matched, 2)):
        first = model(pixel_values=pixels).last_hidden_state
        assert torch.equal(model(pixel_values=pixels).last_hidden_state, first)
        assert torch.allclose(model(pixel_values=pixels[1:2]).last_hidden_state, first[1:2], atol=1e-5)


def test_later_blocks_see_what_is_left_and_report_it(pixels: Tensor) -> None:
    model = VITS["vit"]()
    with torch.no_grad(), tithe.on(model, method(Keep(), weakest, 3), level="kept") as run:
        model(pixel_values=pixels)
    assert [event.kept for event in run.trace.events] == [(n, n, n) for n in (14.0, 11.0, 8.0)]
    assert [event.cols.shape[-1] for event in run.trace.events if event.cols is not None] == [17, 14, 11]
    assert run.trace.flops < run.trace.flops_full


def test_attention_evidence_counts_sizes(pixels: Tensor) -> None:
    """After a proportional merge, the probabilities a step reads are those that the block used."""
    model = VITS["vit"]()
    model.set_attn_implementation("eager")
    seen: list[Tensor] = []

    @card(slug="reads", **ABOUT)
    def reads() -> tuple[Step, ...]:
        def score(evidence: Any, tokens: Tokens) -> Tensor:
            seen.append(evidence.here.probs()[:, :, 0])
            return torch.zeros(tokens.cols.shape)

        return (Step(Site("block", tower="image", layer=2), score, needs=(Need("queries", tower="image"),)),)

    weights: list[Tensor] = []
    attention = find(model).vision.layers[2].attention  # type: ignore[union-attr]
    handle = attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    with torch.no_grad(), tithe.on(model, [method(Merge(), matched, 3, layer=(0, 1)), reads()]):
        model(pixel_values=pixels)
    handle.remove()
    assert seen[0].shape[-1] == 11
    assert float((seen[0] - weights[0]).abs().max()) < 1e-6


class TestHeadsThatReadEveryToken:
    """An average over tokens must count patches: merged tokens are handed back to each patch they stand for."""

    def test_average_is_weighed_by_size(self, pixels: Tensor) -> None:
        torch.manual_seed(0)
        config = Dinov2Config(**{**EYE, "image_size": 16, "mlp_ratio": 2, "num_labels": 5})
        model = Dinov2ForImageClassification(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            with tithe.on(model, method(Merge(), matched, 2)):
                logits = model(pixels).logits
            body = model.dinov2
            images = []
            size = reference_sizes(body, pixels, 2)
            for image, counts in zip(reference("dinov2", body, pixels, matched, 2, False, True), size, strict=True):
                mean = (image[1:] * counts[1:, None]).sum(0) / counts[1:].sum()
                images.append(model.double().classifier(torch.cat([image[0], mean])))
            model.float()
        assert float((logits - torch.stack(images)).abs().max()) < 3e-5

    def test_pooling_by_attention_sees_every_patch(self, pixels: Tensor) -> None:
        torch.manual_seed(0)
        model = SiglipVisionModel(SiglipVisionConfig(**EYE, image_size=16)).eval()
        with torch.no_grad(), tithe.on(model, method(Merge(), matched, 2)):
            out = model(pixel_values=pixels)
        assert out.last_hidden_state.shape[1] == 16
        assert out.last_hidden_state[0].unique(dim=0).shape[0] == 10

    def test_images_that_keep_different_numbers_are_refused(self, pixels: Tensor) -> None:
        torch.manual_seed(0)
        model = SiglipVisionModel(SiglipVisionConfig(**EYE, image_size=16)).eval()
        with torch.no_grad(), tithe.on(model, method(Keep(), weakest, 2, ragged=True)):
            with pytest.raises(tithe.Refused, match="one by one"):
                model(pixel_values=pixels)
            assert model(pixel_values=pixels[:1]).pooler_output.isfinite().all()


def reference_sizes(model: PreTrainedModel, pixels: Tensor, r: int) -> list[Tensor]:
    """How many patches each token left stands for, found by running with every token marked by its own column."""
    sizes = []
    with torch.no_grad(), tithe.on(model, method(Merge(), matched, r), level="history") as run:
        model(pixel_values=pixels)
    for row in range(len(pixels)):
        size = torch.ones(17, dtype=torch.double)
        for event in run.trace.history:
            assert event.keep is not None and event.dest is not None
            for a, b in enumerate(event.dest[row, 0].tolist()):
                if b >= 0:
                    size[b] += size[a]
            size = size[event.keep[row, 0]]
        sizes.append(size)
    return sizes


def test_towers_are_found_inside_other_models(pixels: Tensor) -> None:
    torch.manual_seed(0)
    text = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    models: list[PreTrainedModel] = [
        CLIPModel(CLIPConfig(text_config=text, vision_config={**EYE, "image_size": 16}, projection_dim=8)).eval(),
        ViTForImageClassification(ViTConfig(**EYE, image_size=16, num_labels=5)).eval(),
    ]
    for model in models:
        host = find(model)
        assert host.kind == "vit" and host.vision is not None and len(host.vision.layers) == 3
        with torch.no_grad(), tithe.on(model, method(Merge(), matched, 2)) as run:
            model.get_image_features(pixel_values=pixels) if isinstance(model, CLIPModel) else model(pixels)
        assert [event.kept[0] for event in run.trace.events] == [15.0, 13.0, 11.0]


def test_dropout_in_training_is_refused(pixels: Tensor) -> None:
    model = type(VITS["vit"]())(ViTConfig(**EYE, image_size=16, hidden_dropout_prob=0.1)).train()
    with tithe.on(model, method(Keep(), weakest, 1)), pytest.raises(tithe.Refused, match="eval"):
        model(pixel_values=pixels)


def test_a_step_inside_blocks_is_refused_where_no_tail_is_declared() -> None:
    from tiny_vision import VLMS

    with pytest.raises(tithe.Refused, match="serves vit"):
        tithe.on(VLMS["llava"].model(), method(Keep(), weakest, 1))
