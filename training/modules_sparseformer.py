"""Bootstrap a SparseFormer from a frozen ViT without labels: `python training/modules_sparseformer.py`.

The ViT is `zoo:vit`: 144 patches, 6 blocks. Its first two blocks, frozen, give the features that 16 latent tokens
sample in the place of the patches; blocks 2 and 3 are trained on, blocks 4 and 5, norm and classifier stay frozen. It
learns from the ViT's class tokens alone. (A stem of its own, as in the paper, would have to learn to see first, which
takes longer than this.) Beside it the same model whose regions of interest stay where they start. Share of quadrants
named rightly by the ViT's own classifier, and the likeness to the ViT's class token. Writes `sparseformer` in
`docs/modules.json`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from modules_canvas import pixels, scenes
from modules_common import clock, fit, record
from torch import Tensor, nn

from tithe import zoo
from tithe.bench.tasks import canvas
from tithe.modules.blocks import vit_blocks
from tithe.modules.sparseformer import Focus, SparseFormer, likeness

WIDTH, CHANNELS, POINTS, SIDE, REPEATS, INNER, BATCH, FIRST = 64, 32, 9, 4, 2, 32, 16, 2


class Stem(nn.Module):
    """The first blocks of the ViT, frozen, and a map of their patches to ``CHANNELS``."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = vit.embeddings, vit_blocks(vit)[:FIRST]
        self.narrow = nn.Sequential(nn.LayerNorm(vit.config.hidden_size), nn.Linear(vit.config.hidden_size, CHANNELS))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.embed(images)
            for block in self.blocks:
                hidden = block(hidden)
        return self.narrow(hidden[:, 1:]).mT.unflatten(-1, (canvas.GRID, canvas.GRID))


class Fixed(nn.Module):
    """No move of a region."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.new_zeros(*tokens.shape[:-1], 4)


def build(classifier: nn.Module, moving: bool) -> SparseFormer:
    """A SparseFormer that inherits the later two thirds of the ViT."""
    vit = classifier.vit
    focus = Focus(WIDTH, 4, CHANNELS, POINTS, REPEATS, INNER)
    start = vit.embeddings.cls_token + vit.embeddings.position_embeddings[:, :1]
    blocks = vit_blocks(vit)[FIRST:]
    model = SparseFormer(Stem(vit), focus, blocks, vit.layernorm, start, SIDE, tuned=2, inner=INNER)
    if not moving:
        focus.move = Fixed()
        model.roi.requires_grad_(False)
    return model


def train_model(classifier: nn.Module, moving: bool, steps: int, seed: int) -> SparseFormer:
    """Learn to end at the class token of the ViT."""
    torch.manual_seed(seed)
    model = build(classifier, moving)

    def loss(step: int) -> Tensor:
        images = pixels(scenes((seed, step), BATCH, "train", distinct=False))
        with torch.no_grad():
            wanted = classifier.vit(images).last_hidden_state
        return likeness(model(images), wanted)

    fit(model, loss, steps, 2e-3)
    return model.eval()


@torch.no_grad()
def measure(model: SparseFormer | None, classifier: nn.Module, rows: int = 512) -> dict[str, float]:
    """Occupied and empty quadrants named rightly, and the mean cosine with the ViT; no model: the ViT itself."""
    drawn = scenes((10**6,), rows, "test", distinct=False)
    labels = torch.from_numpy(np.stack([canvas.quadrant_labels(one) for one in drawn]))
    right, losses = [], []
    for part in pixels(drawn).split(64):
        wanted = classifier.vit(part).last_hidden_state
        hidden = wanted if model is None else model(part)
        losses.append(likeness(hidden, wanted))
        right.append(classifier.classifier(hidden[:, 0]).unflatten(-1, (4, -1)).argmax(-1))
    hit = torch.cat(right) == labels
    return {
        "occupied": round(hit[labels != canvas.EMPTY].float().mean().item(), 4),
        "empty": round(hit[labels == canvas.EMPTY].float().mean().item(), 4),
        "cosine": round(1 - torch.stack(losses).mean().item(), 4),
    }


def main() -> None:
    """Bootstrap both and record them beside the ViT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    minutes, classifier = clock(), zoo.load("vit")[0].eval().requires_grad_(False)
    scores = {"the ViT, 144 patches": measure(None, classifier)}
    for name, moving in {"16 moving regions": True, "16 fixed regions": False}.items():
        scores[name] = measure(train_model(classifier, moving, asked.steps, asked.seed), classifier)
        print(name, scores[name], flush=True)
    record(
        "sparseformer", "python training/modules_sparseformer.py", minutes(),
        task="the digit of each quadrant by a frozen classifier, 512 test canvases; learnt without labels",
        steps=asked.steps, seed=asked.seed, tokens=SIDE**2, accuracy=scores,
    )  # fmt: skip


if __name__ == "__main__":
    main()
