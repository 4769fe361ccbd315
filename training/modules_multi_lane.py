"""Teach a frozen ViT digits two at a time, each pair in its own lane: `python training/modules_multi_lane.py`.

The backbone is `zoo:vit`, frozen. Canvases hold two to four digits of any value; the labels of a task say of two digits
whether they are there. After five tasks the model names all ten digits. Beside lanes of 4 summaries: lanes that read
every patch, lanes that read 4 random patches, and one lane that all tasks go on training. Mean average precision over
the ten digits, and over the two of the first task right after it and at the end. Writes `multi-lane` in
`docs/modules.json`.
"""

from __future__ import annotations

import argparse

import torch
from modules_canvas import patch_digits, pixels, scenes
from modules_common import clock, fit, record
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from tithe import zoo
from tithe.bench.tasks import canvas
from tithe.modules.blocks import vit_blocks
from tithe.modules.multi_lane import MultiLane

TASKS, SELECTORS, PROMPTS, LAYERS, BATCH, TRAIN, TEST = 5, 4, 4, 3, 16, 640, 320
KINDS = ("summaries", "every patch", "random patches", "one lane")


class Kind(MultiLane):
    """Lanes that read patches as one of ``KINDS`` does."""

    def __init__(self, kind: str, vit: nn.Module) -> None:
        options = {"selectors": SELECTORS, "prompts": PROMPTS, "layers": LAYERS}
        start = vit.embeddings.cls_token + vit.embeddings.position_embeddings[:, :1]
        super().__init__(vit_blocks(vit), vit.layernorm, start, (2,) * TASKS, **options)
        self.kind = kind
        if kind == "one lane":
            for lane in self.lanes:
                lane.selectors, lane.prompts = self.lanes[0].selectors, self.lanes[0].prompts

    def gather(self, selectors: Tensor, patches: Tensor) -> Tensor:
        if self.kind == "every patch":
            return patches.expand(len(selectors), -1, -1, -1)
        if self.kind == "random patches":
            drawn = torch.rand(len(patches), patches.shape[1]).argsort(-1)[:, :SELECTORS, None]
            return patches.take_along_dim(drawn, 1).expand(len(selectors), -1, -1, -1)
        return super().gather(selectors, patches)


def pool(model: Kind, vit: nn.Module, seed: int, rows: int, split: canvas.Split) -> tuple[list[Tensor], Tensor]:
    """What each block's selectors read of ``rows`` canvases, and which digits are on them, ``[rows, 10]``."""
    drawn = scenes((seed,), rows, split, distinct=False)
    with torch.no_grad():
        parts = [model.frozen(vit.embeddings(part)) for part in pixels(drawn).split(32)]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)], one_hot(patch_digits(drawn), 11).amax(1)[:, :10]


def precision(scores: Tensor, truth: Tensor) -> float:
    """Mean over classes of the average precision, for ``scores, truth [B, classes]``."""
    ordered = truth.take_along_dim(scores.argsort(0, descending=True), 0)
    found = ordered.cumsum(0) / torch.arange(1, len(truth) + 1)[:, None]
    return ((found * ordered).sum(0) / ordered.sum(0)).mean().item()


@torch.no_grad()
def test_precision(model: Kind, patches: list[Tensor], truth: Tensor, classes: slice) -> float:
    """Mean average precision over the digits ``classes``."""
    torch.manual_seed(0)
    scores = torch.cat([model([layer[rows : rows + 64] for layer in patches]) for rows in range(0, len(truth), 64)])
    return precision(scores[:, classes], truth[:, classes])


def train_model(kind: str, steps: int, seed: int) -> dict[str, float]:
    """Train task after task; return what is known of the first task then and at the end, and of all."""
    torch.manual_seed(seed)
    vit = zoo.load("vit")[0].vit.eval().requires_grad_(False)
    model, first = Kind(kind, vit), 0.0
    (patches, truth), test = pool(model, vit, seed, TRAIN, "train"), pool(model, vit, 10**6, TEST, "test")
    for task in range(TASKS):
        if task:
            model.next_task()

        def loss(step: int, task: int = task) -> Tensor:
            rows = torch.randint(TRAIN, (BATCH,))
            logits = model([layer[rows] for layer in patches], task)
            return binary_cross_entropy_with_logits(logits, truth[rows, 2 * task : 2 * task + 2].float())

        fit(model, loss, steps, 2e-2)
        first = test_precision(model, *test, slice(0, 2)) if task == 0 else first
    ends = {"all tasks": slice(0, 10), "first at the end": slice(0, 2)}
    return {"first task": first} | {name: test_precision(model, *test, classes) for name, classes in ends.items()}


def main() -> None:
    """Train the four kinds and record what they know at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    minutes, scores = clock(), {}
    for kind in KINDS:
        scores[kind] = {name: round(value, 4) for name, value in train_model(kind, asked.steps, asked.seed).items()}
        print(kind, scores[kind], flush=True)
    record(
        "multi-lane", "python training/modules_multi_lane.py", minutes(),
        task=f"which of ten digits are on a canvas, learnt in {TASKS} tasks of two; 320 test canvases of 144 patches",
        steps=asked.steps, seed=asked.seed, tokens_a_lane_reads={"summaries": SELECTORS, "every patch": 145},
        accuracy_as_precision=scores,
    )  # fmt: skip


if __name__ == "__main__":
    main()
