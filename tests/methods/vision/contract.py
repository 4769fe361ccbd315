"""What visual methods are tested on: recorded attention, a tiny random LLaVA, and the trained models of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import torch
from methods.context.recorded import vector
from PIL import Image
from tiny_vision import VLMS, prompt
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

import tithe
from tithe.bench.tasks import canvas
from tithe.check import check_method
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.seams.image import TowerLayer
from tithe.seams.stores import View
from tithe.types import IMAGE, Method, Selection, Tokens, checked, comparable
from tithe.zoo.loader import load

__all__ = ["vector"]
CASES, PATCHES = 40, canvas.GRID**2


# -- recorded attention ------------------------------------------------------------------------------------------------


def layer(queries: Tensor, keys: Tensor, values: Tensor | None = None, scaling: float | None = None) -> LayerEvidence:
    """A tower layer with ``queries, keys, values [crops, H, n, d]``."""
    crops, _, n, dim = keys.shape
    cols = torch.arange(n, dtype=torch.int32).expand(crops, 1, n)
    view = View(keys, keys if values is None else values, cols, torch.ones_like(cols, dtype=torch.bool))
    return LayerEvidence(view, scaling or dim**-0.5, queries=queries, causal=False)


def from_rows(attention: Tensor) -> LayerEvidence:
    """A layer whose CLS query (the only one) attends as recorded: ``attention [crops, H, n]``."""
    return layer(torch.ones(*attention.shape[:2], 1, 1), attention.log()[..., None], scaling=1.0)


def shown(
    layers: Sequence[LayerEvidence],
    image: int = 0,
    to_tokens: Callable[[Tensor], Tensor] = lambda patches: patches[0, 1:],
) -> Evidence:
    """What a tower of ``layers`` shows of one image: that of row ``image``."""
    rows = slice(image, image + 1)
    seen = {("image", n): TowerLayer([one]).of(rows, None) for n, one in enumerate(layers)}
    return Evidence(seen, None, {"image": len(layers)}, to_tokens=to_tokens)  # type: ignore[arg-type]


def tokens(n: int, grid: tuple[int, int] | None = None) -> Tokens:
    """The ``n`` tokens of one image."""
    cols = torch.arange(n, dtype=torch.int32)[None, None]
    live = torch.ones_like(cols, dtype=torch.bool)
    return Tokens(cols, live, torch.tensor([n]), torch.full_like(cols, IMAGE), (grid,) if grid else None)


def decide(method: Method, evidence: Evidence, given: Tokens) -> Selection:
    """What the only step of ``method`` selects."""
    (step,) = method.steps
    assert step.score is not None and step.select is not None
    score = checked(step.score(evidence, given), given, method.card.slug, "here")
    if step.compare is None:
        return step.select(score, given)  # type: ignore[call-arg]
    features = comparable(step.compare(evidence, given), given, method.card.slug, "here")
    return step.select(score, given, features)  # type: ignore[call-arg]


def kept(selection: Selection) -> list[int]:
    """The places kept of the first row."""
    return selection.keep[0, 0].nonzero()[:, 0].tolist()


# -- a tiny random model -----------------------------------------------------------------------------------------------


@cache
def model() -> Any:
    """LLaVA with a CLIP tower of 3 layers and a Llama of 4; 16 image tokens."""
    return VLMS["llava"].model()


def prompts(rows: Sequence[int] = (1, 2)) -> dict[str, Tensor]:
    """A left-padded batch with so many images in each row."""
    return prompt("llava", model(), list(rows))


def contract(slug: str, **params: Any) -> None:
    """Run the shared contract on one image a row, since rows of the contract are cut out of the batch one by one."""
    check_method(slug, model(), prompts([1, 1]), **params)


def generated(slug: str, inputs: dict[str, Tensor], **params: Any) -> tuple[Any, Any]:
    """Generate under ``slug``; return the output and the run."""
    common = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with tithe.on(model(), slug, level="scores", **params) as run, torch.no_grad():
        out = model().generate(**inputs, output_logits=True, return_dict_in_generate=True, use_cache=True, **common)
    return out, run


def attentions(pixels: Tensor) -> tuple[Tensor, ...]:
    """Attention probabilities of the tiny tower, computed by transformers' eager attention."""
    tower = model().model.vision_tower
    own = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return tower(pixels, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(own)


# -- the trained models of the zoo -------------------------------------------------------------------------------------


@cache
def asked() -> tuple[Any, Any, list[canvas.VqaCase], Any]:
    """The trained LLaVA, its processor, and questions about canvases of digits."""
    vlm, processor = load("vlm")
    cases = [canvas.vqa_case(seed, "test", "digit-of") for seed in range(CASES)]
    images = [Image.fromarray(case.image) for case in cases]
    text = [f"<image> {case.question}" for case in cases]
    return vlm, processor, cases, processor(images=images, text=text, padding=True, return_tensors="pt")


@cache
def right(slug: str, **params: Any) -> float:
    """The share of questions answered rightly by the trained LLaVA under ``slug``."""
    vlm, processor, cases, inputs = asked()
    with tithe.on(vlm, slug, **params) as run, torch.no_grad():
        out = vlm.generate(**inputs, max_new_tokens=1, do_sample=False)
    told = processor.batch_decode(out[:, -1:], skip_special_tokens=True)
    assert run.trace.events
    return float(np.mean([a.strip() == case.answer for a, case in zip(told, cases, strict=True)]))


@cache
def canvases() -> tuple[Any, Tensor, Tensor]:
    """The trained classifier, its inputs, and the digit of each quadrant."""
    vit, processor = load("vit")
    cases = [canvas.digits_case(seed, "test") for seed in range(CASES)]
    pixels = processor(images=[Image.fromarray(case.image) for case in cases], return_tensors="pt")["pixel_values"]
    return vit, pixels, torch.from_numpy(np.stack([case.labels for case in cases]))


@cache
def read(slug: str | None, **params: Any) -> tuple[float, float]:
    """The share of digits that the trained classifier reads under ``slug``, and the tokens kept by its last step."""
    vit, pixels, labels = canvases()
    tokens_left = float(PATCHES + 1)
    with torch.no_grad():
        if slug is None:
            logits = vit(pixel_values=pixels).logits
        else:
            with tithe.on(vit, slug, **params) as run:
                logits = vit(pixel_values=pixels).logits
            last = run.trace.events[-1].kept
            tokens_left = sum(last) / len(last)
    hit = logits.view(len(labels), 4, -1).argmax(-1) == labels
    return hit[labels != canvas.EMPTY].float().mean().item(), tokens_left


def beats_random(slug: str, keep: int = 18, gap: float = 0.2, **params: Any) -> None:
    """On the trained LLaVA the method answers more than random image tokens do, at the same budget."""
    ours, chance = right(slug, keep=keep, **params), right("random-patches", keep=keep)
    assert ours >= chance + gap, f"{slug} {ours:.3f}, random {chance:.3f} at {keep} of {PATCHES} image tokens"


# -- a tiny random vision transformer ----------------------------------------------------------------------------------


@cache
def classifier() -> Any:
    """A ViT of 4 blocks over 36 patches and CLS."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    config = ViTConfig(**shape, image_size=24, patch_size=4, num_labels=7, initializer_range=0.3)
    return ViTForImageClassification(config).eval()


def pixels() -> dict[str, Tensor]:
    """Three images for ``classifier()``."""
    return {"pixel_values": torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))}


Between = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def by_loops(images: Tensor, between: Between, weighed: bool = True) -> list[Tensor]:
    """Class logits of ``classifier()`` by explicit block maths in float64, one image at a time.

    ``between(block, x, sizes, keys, cls_times_values)`` stands between attention and MLP: ``x [n, d]``, ``sizes [n]``,
    head-mean ``keys [n, d_h]`` and the CLS row summed over heads times the norm of the values ``[n]``; it returns the
    tokens that go on and their sizes. ``weighed``: attention counts a token as often as it has patches.
    """
    vit = deepcopy(classifier()).double()
    out = []
    for image in images.double():
        x = vit.vit.embeddings(image[None])[0]
        sizes = torch.ones(len(x), dtype=torch.float64)
        for index, block in enumerate(vit.vit.layers):
            own, normed = block.attention, block.layernorm_before(x)
            q, k, v = (part(normed).view(len(x), 4, 8).transpose(0, 1) for part in (own.q_proj, own.k_proj, own.v_proj))
            logits = q @ k.transpose(1, 2) * 8**-0.5 + (sizes.log() if weighed else 0)
            probs = logits.softmax(-1)
            x = x + own.o_proj((probs @ v).transpose(0, 1).reshape(len(x), 32))
            mass = probs[:, 0].sum(0) * v.transpose(0, 1).reshape(len(x), 32).norm(dim=-1)
            x, sizes = between(index, x, sizes, k.mean(0), mass)
            x = x + block.mlp(block.layernorm_after(x))
        out.append(vit.classifier(vit.vit.layernorm(x)[0]))
    return out
