"""Find digits with an encoder that sees foreground tokens only: `python training/modules_focus_detr.py`.

Pictures of 48 by 48 pixels hold two to four digits of 8 or 16 pixels, each in one of six colours, among noise and grey
pieces. A small convolution gives two levels, 144 and 36 tokens; the encoder is that of a transformers deformable DETR,
of 3 layers; every token then names a colour and a box. Kinds: every token encoded; the foreground that the scorer
finds; and as many random tokens. A digit counts as found when one of the best boxes, as many as there are digits, has
its colour and overlaps it by half. Writes `focus-detr` in `docs/modules.json`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from modules_common import clock, fit, record
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot, smooth_l1_loss, softplus
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoder

from tithe.bench.tasks import canvas
from tithe.modules.focus_detr import FocusEncoder, foreground_loss, foreground_targets

SIDE, WIDTH, HEADS, LAYERS, BATCH, KEEP, FINE = 48, 32, 2, 3, 16, 0.3, 12
SHAPES, SPANS = [(12, 12), (6, 6)], [(-1.0, 8.0), (8.0, 99.0)]
COLOURS = np.array(list(canvas.COLOURS.values()), np.float32)
KINDS = ("every token", "foreground", "random tokens")


def picture(rng: np.random.Generator, split: canvas.Split) -> tuple[np.ndarray, list[list[float]], list[int]]:
    """One picture ``[3, 48, 48]``, its boxes (left, top, right, bottom) and their colours."""
    pools = canvas.digit_pools(split)
    image = np.abs(rng.normal(0, 0.1, (1, SIDE, SIDE))).astype(np.float32).repeat(3, 0)
    for _ in range(8):
        pool = pools[rng.integers(10)]
        piece = pool[rng.integers(len(pool))][2:6, 2:6] * 0.6
        y, x = rng.integers(0, SIDE - 4, 2)
        image[:, y : y + 4, x : x + 4] = np.maximum(image[:, y : y + 4, x : x + 4], piece)
    boxes, colours = [], []
    for quadrant in rng.permutation(4)[: rng.integers(2, 5)]:
        size, pool, colour = int(rng.choice([8, 16])), pools[rng.integers(10)], int(rng.integers(6))
        digit = pool[rng.integers(len(pool))].repeat(size // 8, 0).repeat(size // 8, 1)
        y, x = np.array(divmod(int(quadrant), 2)) * (SIDE // 2) + rng.integers(0, SIDE // 2 - size + 1, 2)
        spot = image[:, y : y + size, x : x + size]
        np.maximum(spot, digit * COLOURS[colour][:, None, None], out=spot)
        boxes.append([float(x), float(y), float(x + size), float(y + size)])
        colours.append(colour)
    return image, boxes, colours


def batch(seed: tuple[int, ...], rows: int, split: canvas.Split) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Pictures ``[B, 3, 48, 48]``, the boxes ``[m, 4]`` and colours ``[m]`` of each."""
    rng = np.random.default_rng(seed)
    images, boxes, colours = zip(*(picture(rng, split) for _ in range(rows)), strict=True)
    return (
        torch.from_numpy(np.stack(images)) - 0.3,
        [torch.tensor(b) for b in boxes],
        [torch.tensor(c) for c in colours],
    )


class Random(FocusEncoder):
    """Tokens drawn by chance."""

    def score(self, hidden: Tensor, positions: Tensor, valid: Tensor, shapes: object) -> Tensor:
        return torch.rand(hidden.shape[:2])


class Detector(nn.Module):
    """Two levels of features, the encoder, and a colour and a box at every token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        config = DeformableDetrConfig(
            d_model=WIDTH, encoder_layers=LAYERS, encoder_attention_heads=HEADS, encoder_ffn_dim=2 * WIDTH,
            num_feature_levels=len(SHAPES), dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        self.fine_level = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, 2, 1), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.GELU()
        )
        self.coarse_level = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.place = nn.Parameter(0.1 * torch.randn(1, sum(h * w for h, w in SHAPES), WIDTH))
        self.colour = nn.Linear(WIDTH, len(COLOURS))
        nn.init.constant_(self.colour.bias, -3.0)
        self.box = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4))
        made = Random if kind == "random tokens" else FocusEncoder
        keep, cascade = (1.0, (1.0,) * LAYERS) if kind == "every token" else (KEEP, (1.0, 0.8, 0.6))
        self.encoder = made(DeformableDetrEncoder(config), self.colour, keep, FINE, cascade=cascade)
        centres = [
            torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(-1) * (SIDE // h) + SIDE // h // 2
            for h, w in SHAPES
        ]
        self.centres = torch.cat(centres).float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, n, 6]`` and boxes ``[B, n, 4]`` in pixels."""
        fine = self.fine_level(images)
        tokens = torch.cat([level.flatten(2).mT for level in (fine, self.coarse_level(fine))], 1)
        hidden = self.encoder(
            inputs_embeds=tokens, attention_mask=torch.ones(tokens.shape[:2], dtype=torch.bool),
            spatial_position_embeddings=self.place.expand_as(tokens), spatial_shapes=torch.tensor(SHAPES),
            spatial_shapes_list=SHAPES, level_start_index=torch.tensor([0, 144]),
            valid_ratios=torch.ones(len(images), len(SHAPES), 2),
        ).last_hidden_state  # fmt: skip
        reach = 8 * softplus(self.box(hidden))
        return self.colour(hidden), torch.cat([self.centres - reach[..., :2], self.centres + reach[..., 2:]], -1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union ``[n, m]`` of boxes ``[n, 4]`` and ``[m, 4]``."""
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    shared = sides.clamp(min=0).prod(-1)
    areas = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def best(logits: Tensor, boxes: Tensor, count: int) -> list[int]:
    """The tokens of the ``count`` most certain boxes that overlap no better one by half."""
    kept: list[int] = []
    for token in logits.amax(-1).argsort(descending=True).tolist():
        if len(kept) < count and not (kept and bool((overlap(boxes[[token]], boxes[kept]) > 0.5).any())):
            kept.append(token)
    return kept


@torch.no_grad()
def measure(model: Detector, rows: int = 160) -> dict[str, float]:
    """Digits found, and the share of foreground tokens among those that entered the encoder."""
    torch.manual_seed(0)
    images, boxes, colours = batch((10**6,), rows, "test")
    found, total = 0, 0
    logits, drawn = model(images)
    for row, (truth, named) in enumerate(zip(boxes, colours, strict=True)):
        kept = best(logits[row], drawn[row], len(truth))
        right = (overlap(truth, drawn[row][kept]) >= 0.5) & (named[:, None] == logits[row][kept].argmax(-1))
        found, total = found + int(right.any(1).sum()), total + len(truth)
    targets = foreground_targets(boxes, SHAPES, SIDE, SPANS)
    entered = model.encoder.scores.topk(model.encoder.counts[0], 1).indices
    reached = targets.gather(1, entered).sum() / targets.sum()
    return {"digits found": round(found / total, 4), "foreground encoded": round(float(reached), 4)}


def train_model(kind: str, steps: int, seed: int) -> Detector:
    """Train on fresh pictures."""
    torch.manual_seed(seed)
    model = Detector(kind)

    def loss(step: int) -> Tensor:
        images, boxes, colours = batch((seed, step), BATCH, "train")
        logits, drawn = model(images)
        targets = foreground_targets(boxes, SHAPES, SIDE, SPANS)
        owner = [nearest_box(model.centres, one) for one in boxes]
        wanted = torch.stack([box[mine] for box, mine in zip(boxes, owner, strict=True)])
        named = torch.stack([one[mine] for one, mine in zip(colours, owner, strict=True)])
        sought = one_hot(named, len(COLOURS)) * targets[..., None]
        miss = (sought - logits.sigmoid()).abs().detach().square()
        there = targets.bool()
        classed = (miss * binary_cross_entropy_with_logits(logits, sought, reduction="none")).sum() / targets.sum()
        boxed = smooth_l1_loss(drawn[there] / 8, wanted[there] / 8)
        focus = 0.0 if kind == "random tokens" else 1.5 * foreground_loss(model.encoder.scores, targets)
        return classed + 2 * boxed + focus

    fit(model, loss, steps, 2e-3)
    return model.eval()


def nearest_box(centres: Tensor, boxes: Tensor) -> Tensor:
    """The box ``[n]`` that each token's centre is nearest to the middle of."""
    return torch.cdist(centres, (boxes[:, :2] + boxes[:, 2:]) / 2).argmin(1)


def main() -> None:
    """Train the kinds and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    minutes, scores, counts = clock(), {}, {}
    for kind in KINDS:
        model = train_model(kind, asked.steps, asked.seed)
        scores[kind] = measure(model)
        counts[kind] = model.encoder.counts
        print(kind, scores[kind], counts[kind], flush=True)
    record(
        "focus-detr", "python training/modules_focus_detr.py", minutes(),
        task="coloured digits of two sizes found (right colour, overlap of half), 160 test pictures of 180 tokens",
        steps=asked.steps, seed=asked.seed, tokens_by_layer=counts, accuracy=scores,
    )  # fmt: skip


if __name__ == "__main__":
    main()
