"""Print what token choice is worth on the shipped vision models: `python training/check_vision.py`.

Accuracy on test canvases after keeping some of the 144 patches: in `zoo:vlm` between tower and language model
or inside the language model, in `zoo:vit` after its first blocks. Positions stay the original ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlavaForConditionalGeneration,
    ViTForImageClassification,
)
from vision_common import ZOO

from tithe.bench.tasks import canvas

KEPT = (144, 72, 36, 18, 9, 4)
PATCHES = canvas.GRID**2
BATCH = 50


def uniform(rows: int) -> Tensor:
    """Scores [B, 144] by which the best n patches cover the canvas evenly for any n: a golden stride."""
    stride = 89
    rank = (torch.arange(PATCHES) * pow(stride, -1, PATCHES)) % PATCHES
    return -rank.float().expand(rows, -1)


def chosen(score: Tensor, kept: int) -> Tensor:
    """The `kept` best patches of each row, in their original order: [B, n] to int64 [B, kept]."""
    return score.topk(kept, -1).indices.sort(-1).values


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Select along dimension 1: [B, T] or [B, T, d] by int64 [B, n]."""
    return x.gather(1, index if x.dim() == 2 else index[..., None].expand(-1, -1, x.shape[-1]))


class Prompts(NamedTuple):
    """A left-padded batch of questions, made ready for the language model, and what its tower showed."""

    answers: Tensor
    embedded: Tensor
    alive: Tensor
    positions: Tensor
    image: Tensor
    features: Tensor
    attentions: tuple[Tensor, ...]
    digits: Tensor
    relevant: Tensor


def language_model() -> tuple[Any, Any]:
    """`zoo:vlm` and its processor."""
    folder = ZOO / "vlm"
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    return model, AutoProcessor.from_pretrained(folder)


def prompts(model: Any, processor: Any, seeds: range, kind: canvas.Kind | None) -> Prompts:
    """Run the tower on the test cases of these seeds and embed their questions."""
    cases = [canvas.vqa_case(seed, "test", kind) for seed in seeds]
    inputs = processor(
        images=[Image.fromarray(case.image) for case in cases],
        text=[f"<image> {case.question}" for case in cases],
        padding=True,
        return_tensors="pt",
    )
    answers = processor.tokenizer.convert_tokens_to_ids([case.answer for case in cases])
    seen = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
    features = model.model.multi_modal_projector(seen.hidden_states[-2][:, 1:])
    image = inputs["input_ids"] == model.config.image_token_id
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    embedded[image] = features.flatten(0, 1)
    alive = inputs["attention_mask"]
    positions = (alive.cumsum(-1) - 1).clamp(min=0)
    masks = stack([case.digits for case in cases]), stack([case.relevant for case in cases])
    return Prompts(torch.tensor(answers), embedded, alive, positions, image, features, seen.attentions, *masks)


def before_language(cases: int, kind: canvas.Kind | None) -> dict[str, list[float]]:
    """Accuracy of `zoo:vlm` when patches are dropped between tower and language model, for each of `KEPT`."""
    model, processor = language_model()
    hits = dict[str, list[Tensor]]()
    for seeds in batches(cases):
        asked = prompts(model, processor, seeds, kind)
        noise = torch.rand(asked.digits.shape)
        scores = {
            "random": noise,
            "uniform": uniform(len(noise)),
            "CLS attention, layer -2": asked.attentions[-2][:, :, 0, 1:].mean(1),
            "CLS attention, last layer": asked.attentions[-1][:, :, 0, 1:].mean(1),
            "received attention, layer -2": asked.attentions[-2][:, :, 1:, 1:].mean((1, 2)),
            "feature norm": asked.features.norm(dim=-1),
            "oracle: any digit": noise + 10 * asked.digits,
            "oracle: the digits asked about": noise + 10 * asked.relevant,
        }
        for name, score in scores.items():
            for kept in KEPT:
                columns = surviving(asked.image, score, kept).nonzero()[:, 1].view(len(noise), -1)
                out = model.model.language_model(
                    inputs_embeds=gather(asked.embedded, columns),
                    attention_mask=gather(asked.alive, columns),
                    position_ids=gather(asked.positions, columns),
                    use_cache=False,
                ).last_hidden_state
                hits.setdefault(f"{name}|{kept}", []).append(told(model, out) == asked.answers)
    return table(hits)


def inside_language(cases: int, kind: canvas.Kind | None, layer: int) -> dict[str, list[float]]:
    """Accuracy of `zoo:vlm` when dropped patches are hidden from the layers after the first `layer`."""
    model, processor = language_model()
    language = model.model.language_model
    hits = dict[str, list[Tensor]]()
    for seeds in batches(cases):
        asked = prompts(model, processor, seeds, kind)
        noise = torch.rand(asked.digits.shape)

        def forward(survivors: Tensor | None, asked: Prompts = asked) -> Any:
            def hide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
                mask = kwargs["attention_mask"]
                if survivors is not None:
                    mask = mask.masked_fill(~survivors[:, None, None], torch.finfo(mask.dtype).min)
                return args, {**kwargs, "attention_mask": mask}

            later = language.layers[layer:]
            hooks = [block.register_forward_pre_hook(hide, with_kwargs=True) for block in later]
            try:
                return language(
                    inputs_embeds=asked.embedded,
                    attention_mask=asked.alive,
                    position_ids=asked.positions,
                    output_attentions=survivors is None,
                    use_cache=False,
                )
            finally:
                for hook in hooks:
                    hook.remove()

        last = forward(None).attentions[layer - 1][:, :, -1].mean(1)
        scores = {
            "random": noise,
            "attention of the last token": last[asked.image].view(len(noise), -1),
            "oracle: any digit": noise + 10 * asked.digits,
            "oracle: the digits asked about": noise + 10 * asked.relevant,
        }
        for name, score in scores.items():
            for kept in KEPT:
                out = forward(surviving(asked.image, score, kept)).last_hidden_state
                hits.setdefault(f"{name}|{kept}", []).append(told(model, out) == asked.answers)
    return table(hits)


def surviving(image: Tensor, score: Tensor, kept: int) -> Tensor:
    """Columns that stay, bool [B, T]: all text, and the `kept` best of the image, [B, 144]."""
    keep = ~image
    keep[image] = torch.zeros_like(score).scatter(1, chosen(score, kept), 1).flatten().bool()
    return keep


def told(model: Any, hidden: Tensor) -> Tensor:
    """The answers, int64 [B], from last hidden states [B, T, d]."""
    return model.lm_head(hidden[:, -1]).argmax(-1)


def classifier_accuracy(cases: int, block: int) -> dict[str, list[float]]:
    """Accuracy of `zoo:vit` on occupied quadrants by choice of patches after `block` blocks, for each of `KEPT`."""
    processor = AutoImageProcessor.from_pretrained(ZOO / "vit")
    model = ViTForImageClassification.from_pretrained(
        ZOO / "vit", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    hits = dict[str, list[Tensor]]()
    for seeds in batches(cases):
        batch = [canvas.digits_case(seed, "test") for seed in seeds]
        inputs = processor(images=[Image.fromarray(case.image) for case in batch], return_tensors="pt")
        labels = torch.from_numpy(np.stack([case.labels for case in batch]))
        occupied = labels != canvas.EMPTY
        full = model(**inputs, output_hidden_states=True, output_attentions=True)
        here, last = full.attentions[block - 1], full.attentions[-1]
        noise = torch.rand(len(batch), PATCHES)
        scores = {
            "random": noise,
            "uniform": uniform(len(batch)),
            "CLS attention, this block": here[:, :, 0, 1:].mean(1),
            "received attention, this block": here[:, :, 1:, 1:].mean((1, 2)),
            "CLS attention, last block (two passes)": last[:, :, 0, 1:].mean(1),
            "oracle: any digit": noise + 10 * stack([case.digits for case in batch]),
        }
        for name, score in scores.items():
            for kept in KEPT:
                columns = torch.cat([torch.zeros(len(batch), 1, dtype=torch.long), 1 + chosen(score, kept)], 1)
                logits = rest(model, block, gather(full.hidden_states[block], columns))
                hit = logits.view(-1, 4, canvas.EMPTY + 1).argmax(-1) == labels
                hits.setdefault(f"{name}|{kept}", []).append(hit[occupied])
    return table(hits)


def rest(model: ViTForImageClassification, block: int, hidden: Tensor) -> Tensor:
    """Logits from what came out of the first `block` blocks, [B, 1 + n, d] to [B, 44]."""
    for layer in model.vit.layers[block:]:
        hidden = layer(hidden)
    return model.classifier(model.vit.layernorm(hidden)[:, 0])


def batches(cases: int) -> Iterator[range]:
    """Seeds in groups of `BATCH`."""
    for start in range(0, cases, BATCH):
        yield range(start, min(start + BATCH, cases))


def stack(masks: list[NDArray[np.bool_]]) -> Tensor:
    """Patch masks [12, 12] as float [B, 144]."""
    return torch.from_numpy(np.stack(masks)).flatten(1).float()


def table(hits: dict[str, list[Tensor]]) -> dict[str, list[float]]:
    """Mean hits by name, in the order of `KEPT`."""
    names = dict.fromkeys(key.split("|")[0] for key in hits)
    return {name: [torch.cat(hits[f"{name}|{kept}"]).float().mean().item() for kept in KEPT] for name in names}


def show(title: str, rows: dict[str, list[float]]) -> None:
    """Print one table."""
    print(f"\n{title}\n{'kept of 144':40s}" + "".join(f"{kept:7d}" for kept in KEPT))
    for name, values in rows.items():
        print(f"{name:40s}" + "".join(f"{value:7.3f}" for value in values), flush=True)


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    jobs: dict[str, Callable[[], dict[str, list[float]]]] = {
        "zoo:vlm, before the language model, one hop": lambda: before_language(asked.cases, None),
        "zoo:vlm, before the language model, two hops": lambda: before_language(asked.cases, "beside"),
        "zoo:vlm, after language layer 1, one hop": lambda: inside_language(asked.cases, None, 1),
        "zoo:vlm, after language layer 1, two hops": lambda: inside_language(asked.cases, "beside", 1),
        "zoo:vlm, after language layer 2, two hops": lambda: inside_language(asked.cases, "beside", 2),
        "zoo:vit, after block 1, occupied quadrants": lambda: classifier_accuracy(asked.cases, 1),
        "zoo:vit, after block 2, occupied quadrants": lambda: classifier_accuracy(asked.cases, 2),
        "zoo:vit, after block 3, occupied quadrants": lambda: classifier_accuracy(asked.cases, 3),
    }
    for title, job in jobs.items():
        show(f"{title} ({asked.cases} test cases)", job())


if __name__ == "__main__":
    main()
