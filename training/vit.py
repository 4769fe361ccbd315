"""Train `zoo:vit`, a ViT that names the digit of each quadrant of a canvas: `python training/vit.py`.

Its 44 logits are four groups of eleven, one a quadrant in reading order, the eleventh class being `empty`. An
auxiliary head names the digit of every patch before the last block; it is thrown away.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from vision_common import (
    DIGITS_LICENCE,
    DIGITS_SOURCE,
    MEAN,
    STD,
    ZOO,
    pixels,
    position_table,
    save,
    train,
    write_card,
)

from tithe.bench.tasks import canvas

FOLDER = ZOO / "vit"
WIDTH, BATCH, CLASSES = 128, 16, canvas.EMPTY + 1
LABELS = [f"{place} {digit}" for place in canvas.QUADRANTS for digit in [*map(str, range(10)), "empty"]]


def build_model() -> ViTForImageClassification:
    """A ViT of 0.8 million parameters with untrained weights."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=canvas.SIDE,
        patch_size=canvas.PATCH,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        initializer_range=0.06,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = ViTForImageClassification(config)
    model.vit.embeddings.position_embeddings.data.copy_(position_table(WIDTH)[None])
    return model


def build_processor() -> ViTImageProcessorPil:
    """The PIL image processor; a canvas passes through it at its own size."""
    return ViTImageProcessorPil(size={"height": canvas.SIDE, "width": canvas.SIDE}, image_mean=MEAN, image_std=STD)


def train_model(model: ViTForImageClassification, steps: int, seed: int) -> float:
    """Train on quadrants and, through a throw-away head, on patches. Returns CPU minutes."""
    digit = nn.Linear(WIDTH, CLASSES)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        drawn = [canvas.scene(rng, "train", distinct=False) for _ in range(BATCH)]
        digits = torch.from_numpy(np.stack([canvas.patch_labels(s)[0] for s in drawn])).flatten()
        quadrants = torch.from_numpy(np.stack([canvas.quadrant_labels(s) for s in drawn])).flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(pixels(s.image for s in drawn), output_hidden_states=True)
            patches = out.hidden_states[-2][:, 1:].flatten(0, 1)
            by_patch = cross_entropy(digit(patches).float(), digits)
            by_quadrant = cross_entropy(out.logits.float().view(-1, CLASSES), quadrants)
        return by_patch + 0.5 * by_quadrant, {"patch": by_patch.item(), "quadrant": by_quadrant.item()}

    def report(step: int) -> None:
        save(model, FOLDER)
        print(f"      {step} test accuracy {accuracy(model, 320)}", flush=True)

    return train([*model.parameters(), *digit.parameters()], loss, steps, 1e-3, report)


@torch.no_grad()
def accuracy(model: ViTForImageClassification, cases: int) -> dict[str, float]:
    """Share of occupied and of empty test quadrants named rightly, through the processor."""
    processor = build_processor()
    model.eval()
    hits: list[Tensor] = []
    truth: list[Tensor] = []
    for start in range(0, cases, 64):
        batch = [canvas.digits_case(seed, "test") for seed in range(start, min(start + 64, cases))]
        inputs = processor(images=[Image.fromarray(case.image) for case in batch], return_tensors="pt")
        labels = torch.from_numpy(np.stack([case.labels for case in batch]))
        hits.append(model(**inputs).logits.view(-1, 4, CLASSES).argmax(-1) == labels)
        truth.append(labels)
    model.train()
    hit, occupied = torch.cat(hits), torch.cat(truth) != canvas.EMPTY
    return {
        "occupied": round(hit[occupied].float().mean().item(), 4),
        "empty": round(hit[~occupied].float().mean().item(), 4),
    }


def main() -> None:
    """Train, ship and measure what was shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = build_model()
    build_processor().save_pretrained(FOLDER)
    minutes = train_model(model, asked.steps, asked.seed)
    save(model, FOLDER)
    shipped = ViTForImageClassification.from_pretrained(FOLDER, dtype=torch.float32)
    write_card(
        FOLDER,
        name="zoo:vit",
        task="name the digit of each quadrant of a 48 x 48 canvas: 4 groups of 11 logits, last `empty`",
        architecture="ViTForImageClassification of 6 layers, width 128, patches of 4 x 4",
        parameters=sum(p.numel() for p in shipped.parameters()),
        data=DIGITS_SOURCE,
        data_licence=DIGITS_LICENCE,
        weights_licence="same as the project",
        command="python training/vit.py",
        seed=asked.seed,
        steps=asked.steps,
        cpu_minutes=round(minutes, 1),
        batch=BATCH,
        test_cases=1000,
        accuracy=accuracy(shipped, 1000),
    )


if __name__ == "__main__":
    main()
