"""Train `zoo:vim`, a state-space model that names the digit of each quadrant of a canvas: `python training/vim.py`.

Its logits, canvas and auxiliary head are those of `training/vit.py`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vision_common import DIGITS_LICENCE, DIGITS_SOURCE, ZOO, pixels, position_table, save, train, write_card
from vit import BATCH, CLASSES, LABELS, accuracy, build_processor

from tithe.bench.tasks import canvas
from tithe.modules.vim import VimConfig, VimForImageClassification

FOLDER = ZOO / "vim"


def build_model() -> VimForImageClassification:
    """A Vim of 0.4 million parameters with untrained weights."""
    config = VimConfig(
        image_size=canvas.SIDE,
        patch_size=canvas.PATCH,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = VimForImageClassification(config)
    table = position_table(config.hidden_size)
    order = torch.tensor([*range(1, model.cls_place + 1), 0, *range(model.cls_place + 1, len(table))])
    model.positions.data.copy_(table[order][None])
    return model


def train_model(model: VimForImageClassification, steps: int, seed: int) -> float:
    """Train on quadrants and, through a throw-away head, on patches. Returns CPU minutes."""
    digit = nn.Linear(model.config.hidden_size, CLASSES)
    patch = [place for place in range(1 + canvas.GRID**2) if place != model.cls_place]

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        drawn = [canvas.scene(rng, "train", distinct=False) for _ in range(BATCH)]
        digits = torch.from_numpy(np.stack([canvas.patch_labels(s)[0] for s in drawn])).flatten()
        quadrants = torch.from_numpy(np.stack([canvas.quadrant_labels(s) for s in drawn])).flatten()
        out = model(pixels(s.image for s in drawn), output_hidden_states=True)
        by_patch = cross_entropy(digit(out.hidden_states[-3][:, patch].flatten(0, 1)), digits)
        by_quadrant = cross_entropy(out.logits.view(-1, CLASSES), quadrants)
        return by_patch + 0.5 * by_quadrant, {"patch": by_patch.item(), "quadrant": by_quadrant.item()}

    def report(step: int) -> None:
        save(model, FOLDER)
        print(f"      {step} test accuracy {accuracy(model, 320)}", flush=True)

    return train([*model.parameters(), *digit.parameters()], loss, steps, 2e-3, report)


def main() -> None:
    """Train, ship and measure what was shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = build_model()
    build_processor().save_pretrained(FOLDER)
    minutes = train_model(model, asked.steps, asked.seed)
    save(model, FOLDER)
    shipped = VimForImageClassification.from_pretrained(FOLDER, dtype=torch.float32)
    write_card(
        FOLDER,
        name="zoo:vim",
        task="name the digit of each quadrant of a 48 x 48 canvas: 4 groups of 11 logits, last `empty`",
        architecture="VimForImageClassification (tithe.modules.vim) of 6 layers, width 96, patches of 4 x 4",
        parameters=sum(p.numel() for p in shipped.parameters()),
        data=DIGITS_SOURCE,
        data_licence=DIGITS_LICENCE,
        weights_licence="same as the project",
        command="python training/vim.py",
        seed=asked.seed,
        steps=asked.steps,
        cpu_minutes=round(minutes, 1),
        batch=BATCH,
        test_cases=1000,
        accuracy=accuracy(shipped, 1000),
    )


if __name__ == "__main__":
    main()
