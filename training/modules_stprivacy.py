"""Publish clips so that the motion can be read and the colour cannot: `python training/modules_stprivacy.py`.

Clips of 6 frames of 24 by 24 pixels: one digit of one of six colours moves in one of four directions over still noise.
The direction is the action, the colour is private. Of 48 tubelets a quarter is published. Kinds: everything published
as it is; the tubelets chosen but not anonymised; both; and both with random tubelets. Then a fresh attacker is trained
on what is published to name the colour. Writes `stprivacy` in `docs/modules.json`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from modules_common import clock, fit, record
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tithe.bench.tasks import canvas
from tithe.modules.stprivacy import Recogniser, STPrivacy, adversarial_loss, ratio_loss, to_tubelets

FRAMES, SIDE, SIZE, WIDTH, BATCH, KEEP, WEIGHT = 6, 24, (2, 6, 6), 32, 32, 0.25, 5.0
TOKENS = FRAMES * SIDE**2 // int(np.prod(SIZE))
MOVES = ((0, 2), (0, -2), (2, 0), (-2, 0))
KINDS = ("published as it is", "chosen", "chosen, anonymised", "random, anonymised")


def batch(seed: tuple[int, ...], rows: int, split: canvas.Split) -> tuple[Tensor, Tensor, Tensor]:
    """Tubelets ``[B, 48, 216]``, direction and colour ``[B]`` of clips."""
    rng, pools = np.random.default_rng(seed), canvas.digit_pools(split)
    palette = np.array(list(canvas.COLOURS.values()), np.float32)
    clips = np.abs(rng.normal(0, 0.1, (rows, 1, 1, SIDE, SIDE))).astype(np.float32)
    clips = np.broadcast_to(clips, (rows, 3, FRAMES, SIDE, SIDE)).copy()
    moves, colours = rng.integers(0, len(MOVES), rows), rng.integers(0, len(palette), rows)
    far = 2 * (FRAMES - 1)
    for row, (move, colour) in enumerate(zip(moves, colours, strict=True)):
        pool = pools[rng.integers(10)]
        digit = pool[rng.integers(len(pool))] * palette[colour][:, None, None]
        step = np.array(MOVES[move])
        low = np.where(step < 0, far, 0)
        begin = rng.integers(low, SIDE - 8 - np.where(step > 0, far, 0) + 1)
        for frame in range(FRAMES):
            y, x = begin + frame * step
            spot = clips[row, :, frame, y : y + 8, x : x + 8]
            np.maximum(spot, digit, out=spot)
    return to_tubelets(torch.from_numpy(clips) - 0.3, SIZE), torch.from_numpy(moves), torch.from_numpy(colours)


class Random(STPrivacy):
    """Tubelets drawn by chance."""

    def choose(self, tokens: Tensor) -> Tensor:
        count = round(self.keep * tokens.shape[1])
        return torch.rand(tokens.shape[:2]).argsort(1)[:, :count].sort(1).values

    def forward(self, tubelets: Tensor) -> tuple[Tensor, Tensor]:
        was, self.training = self.training, False  # a choice that is not learnt needs no other way in training
        out = super().forward(tubelets)
        self.training = was
        return out


class Model(nn.Module):
    """What publishes, what reads the action, what spies."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        keep = 1.0 if kind == KINDS[0] else KEEP
        made = Random if kind.startswith("random") else STPrivacy
        self.publish = made(3 * int(np.prod(SIZE)), TOKENS, WIDTH, keep=keep)
        self.action, self.spy = Recogniser(WIDTH, len(MOVES)), Recogniser(WIDTH, len(canvas.COLOURS))
        self.weight = WEIGHT if kind.endswith("anonymised") else 0.0


def train_model(kind: str, steps: int, seed: int) -> Model:
    """Train the three together."""
    torch.manual_seed(seed)
    model = Model(kind)

    def loss(step: int) -> Tensor:
        tubelets, moves, colours = batch((seed, step), BATCH, "train")
        published, kept = model.publish(tubelets)
        # The action is found first; a full adversary from the start would leave nothing to choose by.
        weight = model.weight * min(1.0, step / (0.3 * steps))
        named = adversarial_loss(published, kept, model.action, model.spy, moves, colours, weight)
        return named + 2 * ratio_loss(kept, model.publish.keep)

    fit(model, loss, steps, 2e-3)
    return model.eval()


def attack(model: Model, steps: int, seed: int) -> float:
    """Train a fresh attacker on what is published and return its accuracy on test clips."""
    torch.manual_seed(seed + 1)
    spy = Recogniser(WIDTH, len(canvas.COLOURS))

    def loss(step: int) -> Tensor:
        tubelets, _, colours = batch((seed, 10**5 + step), BATCH, "train")
        with torch.no_grad():
            published, kept = model.publish(tubelets)
        return cross_entropy(spy(published, kept), colours)

    fit(spy, loss, steps, 4e-3)
    return test_accuracy(model, spy, private=True)


@torch.no_grad()
def test_accuracy(model: Model, reader: nn.Module, private: bool, rows: int = 512) -> float:
    """Share of test clips whose action, or private attribute, ``reader`` names rightly from what is published."""
    torch.manual_seed(0)
    tubelets, moves, colours = batch((10**6,), rows, "test")
    named = reader(*model.publish(tubelets)).argmax(-1)
    return (named == (colours if private else moves)).float().mean().item()


def main() -> None:
    """Train the kinds, attack each, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    minutes, scores = clock(), {}
    for kind in KINDS:
        model = train_model(kind, asked.steps, asked.seed)
        action = test_accuracy(model, model.action, private=False)
        scores[kind] = {"action": round(action, 4), "attacker": round(attack(model, 2 * asked.steps, asked.seed), 4)}
        print(kind, scores[kind], flush=True)
    record(
        "stprivacy", "python training/modules_stprivacy.py", minutes(),
        task="direction of a moving digit (chance 0.25), its colour hidden (chance 0.17); 512 test clips, 48 tubelets",
        steps=asked.steps, seed=asked.seed, tubelets_published=round(KEEP * TOKENS), accuracy=scores,
    )  # fmt: skip


if __name__ == "__main__":
    main()
