"""Print what token choice is worth on the shipped vision models: `python training/check_vision.py`.

Accuracy on test canvases after keeping some of the 144 patches: in `zoo:vlm` between tower and language
model, in `zoo:vit` after its first block. Positions stay the original ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
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


def language_accuracy(cases: int, kind: canvas.Kind | None) -> dict[str, list[float]]:
    """Accuracy of `zoo:vlm` by choice of patches, one figure for each of `KEPT`."""
    processor = AutoProcessor.from_pretrained(ZOO / "vlm")
    model = LlavaForConditionalGeneration.from_pretrained(
        ZOO / "vlm", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    image_id, hits = model.config.image_token_id, dict[str, list[Tensor]]()
    for seeds in batches(cases):
        batch = [canvas.vqa_case(seed, "test", kind) for seed in seeds]
        inputs = processor(
            images=[Image.fromarray(case.image) for case in batch],
            text=[f"<image> {case.question}" for case in batch],
            padding=True,
            return_tensors="pt",
        )
        answers = torch.tensor(processor.tokenizer.convert_tokens_to_ids([case.answer for case in batch]))
        seen = model.model.vision_tower(
            inputs["pixel_values"], output_hidden_states=True, output_attentions=True
        )
        features = model.model.multi_modal_projector(seen.hidden_states[-2][:, 1:])
        ids, alive = inputs["input_ids"], inputs["attention_mask"]
        image = ids == image_id
        embedded = model.get_input_embeddings()(ids)
        embedded[image] = features.flatten(0, 1)
        positions = (alive.cumsum(-1) - 1).clamp(min=0)
        noise = torch.rand(len(batch), PATCHES)
        scores = {
            "random": noise,
            "uniform": uniform(len(batch)),
            "CLS attention, layer -2": seen.attentions[-2][:, :, 0, 1:].mean(1),
            "CLS attention, last layer": seen.attentions[-1][:, :, 0, 1:].mean(1),
            "received attention, layer -2": seen.attentions[-2][:, :, 1:, 1:].mean((1, 2)),
            "feature norm": features.norm(dim=-1),
            "oracle: any digit": noise + 10 * stack([case.digits for case in batch]),
            "oracle: the digits asked about": noise + 10 * stack([case.relevant for case in batch]),
        }
        for name, score in scores.items():
            for kept in KEPT:
                keep = ~image
                keep[image] = torch.zeros_like(score).scatter(1, chosen(score, kept), 1).flatten().bool()
                columns = keep.nonzero()[:, 1].view(len(batch), -1)
                out = model.model.language_model(
                    inputs_embeds=gather(embedded, columns),
                    attention_mask=gather(alive, columns),
                    position_ids=gather(positions, columns),
                    use_cache=False,
                ).last_hidden_state
                told = model.lm_head(out[:, -1]).argmax(-1)
                hits.setdefault(f"{name}|{kept}", []).append(told == answers)
    return table(hits)


def classifier_accuracy(cases: int) -> dict[str, list[float]]:
    """Accuracy of `zoo:vit` on occupied quadrants by choice of patches after block 1, for each of `KEPT`."""
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
        first, last = full.attentions[0], full.attentions[-1]
        noise = torch.rand(len(batch), PATCHES)
        scores = {
            "random": noise,
            "uniform": uniform(len(batch)),
            "CLS attention, block 1": first[:, :, 0, 1:].mean(1),
            "received attention, block 1": first[:, :, 1:, 1:].mean((1, 2)),
            "CLS attention, last block (two passes)": last[:, :, 0, 1:].mean(1),
            "oracle: any digit": noise + 10 * stack([case.digits for case in batch]),
        }
        for name, score in scores.items():
            for kept in KEPT:
                columns = torch.cat(
                    [torch.zeros(len(batch), 1, dtype=torch.long), 1 + chosen(score, kept)], 1
                )
                logits = after_first_block(model, gather(full.hidden_states[1], columns))
                hit = logits.view(-1, 4, canvas.EMPTY + 1).argmax(-1) == labels
                hits.setdefault(f"{name}|{kept}", []).append(hit[occupied])
    return table(hits)


def after_first_block(model: ViTForImageClassification, hidden: Tensor) -> Tensor:
    """Logits from what came out of block 1, [B, 1 + n, d] to [B, 44]."""
    for layer in model.vit.layers[1:]:
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
    return {
        name: [torch.cat(hits[f"{name}|{kept}"]).float().mean().item() for kept in KEPT] for name in names
    }


def show(title: str, rows: dict[str, list[float]]) -> None:
    """Print one table."""
    print(f"\n{title}\n{'kept of 144':40s}" + "".join(f"{kept:7d}" for kept in KEPT))
    for name, values in rows.items():
        print(f"{name:40s}" + "".join(f"{value:7.3f}" for value in values), flush=True)


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    jobs: dict[str, Callable[[], dict[str, list[float]]]] = {
        "zoo:vlm, before the language model, one-hop questions": lambda: language_accuracy(asked.cases, None),
        "zoo:vlm, before the language model, two-hop (beside)": lambda: language_accuracy(
            asked.cases, "beside"
        ),
        "zoo:vit, after block 1, occupied quadrants": lambda: classifier_accuracy(asked.cases),
    }
    for title, job in jobs.items():
        show(f"{title} ({asked.cases} test cases)", job())


if __name__ == "__main__":
    main()
