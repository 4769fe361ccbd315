"""Give a trained ViT bi-level routing attention and train it on: `python training/modules_biformer.py`.

The weights are those of `zoo:vit`, which names the digit of each quadrant of a canvas of 12 by 12 patches. Its patches
then attend to 4 of 36 regions, routed by content, or drawn at random, or their own and the 3 nearest (a window), or to
every region; only the class token goes on reading them all. Share of occupied quadrants named rightly right after the
change and after a short training, which is the same for all. Writes `biformer` in `docs/modules.json`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from modules_canvas import pixels, scenes
from modules_common import clock, fit, record
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tithe import zoo
from tithe.bench.tasks import canvas
from tithe.modules.biformer import BiLevelRoutingAttention
from tithe.modules.blocks import Block, vit_blocks

REGIONS, KEEP, BATCH, CLASSES = 6, 4, 16, canvas.EMPTY + 1
KINDS = ("every region", "routed", "random regions", "nearest regions")


class Attention(BiLevelRoutingAttention):
    """The layer with the weights of a block and the rule of one of ``KINDS``."""

    def __init__(self, block: Block, kind: str) -> None:
        width = block.out.in_features
        regions, keep = (1, 1) if kind == "every region" else (REGIONS, KEEP)  # one region is the whole image
        super().__init__(width, block.heads, regions, keep, local=0)
        self.kind = kind
        place = torch.cartesian_prod(torch.arange(REGIONS), torch.arange(REGIONS)).float()
        self.nearest = torch.cdist(place, place).argsort(dim=1, stable=True)[:, :KEEP]
        with torch.no_grad():
            for name in ("weight", "bias"):
                q, k, v = (getattr(part, name) for part in (block.query, block.key, block.value))
                # A ViT divides by the root of a head's width, this layer by that of all of them.
                getattr(self.qkv, name).copy_(torch.cat([q * block.heads**0.5, k, v]))
        self.out.load_state_dict(block.out.state_dict())

    def choose(self, q: Tensor, k: Tensor) -> Tensor:
        if self.kind == "random regions":
            return torch.rand(*q.shape[:2], REGIONS**2).argsort(-1)[..., :KEEP]
        return self.nearest.expand(len(q), -1, -1) if self.kind == "nearest regions" else super().choose(q, k)


class Routed(nn.Module):
    """A block of a ViT whose patches attend by regions and whose class token attends to everything."""

    def __init__(self, block: Block, kind: str) -> None:
        super().__init__()
        self.block, self.attention = block, Attention(block, kind)

    def forward(self, hidden: Tensor) -> Tensor:
        normal = self.block.before(hidden)
        image = normal[:, 1:].unflatten(1, (canvas.GRID, canvas.GRID))
        mixed = torch.cat([self.block.attend(normal[:, :1], normal), self.attention(image).flatten(1, 2)], 1)
        hidden = hidden + mixed
        return hidden + self.block.mlp(self.block.between(hidden))


class Model(nn.Module):
    """`zoo:vit` with its attention changed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        classifier = zoo.load("vit")[0]
        self.embed, self.norm, self.head = classifier.vit.embeddings, classifier.vit.layernorm, classifier.classifier
        self.blocks = nn.Sequential(*(Routed(block, kind) for block in vit_blocks(classifier.vit)))
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 4, 11]``."""
        return self.head(self.norm(self.blocks(self.embed(images)))[:, 0]).unflatten(-1, (4, CLASSES))


def batch(seed: tuple[int, ...], rows: int, split: canvas.Split) -> tuple[Tensor, Tensor]:
    """Images and the digit of each quadrant, ``[B, 4]``."""
    drawn = scenes(seed, rows, split, distinct=False)
    return pixels(drawn), torch.from_numpy(np.stack([canvas.quadrant_labels(one) for one in drawn]))


@torch.no_grad()
def test_accuracy(model: Model, rows: int = 384) -> float:
    """Share of occupied quadrants of test canvases named rightly."""
    torch.manual_seed(0)
    images, labels = batch((10**6,), rows, "test")
    right = torch.cat([model(part).argmax(-1) for part in images.split(64)]) == labels
    return right[labels != canvas.EMPTY].float().mean().item()


def train_one(kind: str, steps: int, seed: int) -> dict[str, float]:
    """Change the attention, measure, train, measure."""
    model = Model(kind)
    before = test_accuracy(model)
    torch.manual_seed(seed)

    def loss(step: int) -> Tensor:
        images, labels = batch((seed, step), BATCH, "train")
        return cross_entropy(model(images).flatten(0, 1), labels.flatten())

    fit(model, loss, steps, 5e-4)
    return {"at once": round(before, 4), "trained on": round(test_accuracy(model), 4)}


def main() -> None:
    """Measure the four kinds and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    minutes, scores = clock(), {}
    for kind in KINDS:
        scores[kind] = train_one(kind, asked.steps, asked.seed)
        print(kind, scores[kind], flush=True)
    record(
        "biformer", "python training/modules_biformer.py", minutes(),
        task="the digit of each quadrant, 384 test canvases of 144 patches; the attention of a trained ViT exchanged",
        steps=asked.steps, seed=asked.seed, regions_read=f"{KEEP} of {REGIONS**2}", accuracy=scores,
    )  # fmt: skip


if __name__ == "__main__":
    main()
