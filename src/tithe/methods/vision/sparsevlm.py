"""SparseVLM. Zhang et al. 2024, arXiv:2410.04417. Authors' code: Gumpest/SparseVLMs @ 26a5f48 (Apache-2.0).

Deviation: a recycled token stands in the place of its cluster's centre, at that position, where theirs follow the kept
image tokens and positions are counted anew; ties of density go by place, theirs by noise. Their layers are 2, 6 and 15
of 32, taken as shares of the depth. The code, followed here, has the three counts for four budgets (192, 128, 96 and
64 of 576 image tokens, averages over the layers); others are interpolated. ``scale`` is the paper's count by rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.instructed import ALL, each_row, from_rows, raters
from tithe.seams.evidence import Evidence
from tithe.selections.narrowed import Stage
from tithe.selections.recycled import Recycled
from tithe.types import Depth, Need, ScoreFn, Site, Step, Tokens

COUNTS = ((0, 0, 0, 0), (64, 66, 30, 17), (96, 238, 48, 26), (128, 303, 110, 36), (192, 300, 200, 110), (576,) * 4)


@card(
    slug="sparsevlm",
    title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    year=2024,
    arxiv="2410.04417",
    code="Gumpest/SparseVLMs",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Words that are like the image rate its tokens by their attention in three layers; the best stay, and "
    "of the others the better ones are recycled as the means of clusters.",
)
def sparsevlm(
    keep: float | int | Sequence[float | int] = 1 / 3,
    layer: Sequence[Depth] = (2 / 32, 6 / 32, 15 / 32),
    recycle: float = 0.3,
    scale: float | None = None,
) -> tuple[Step, ...]:
    """Let ``keep`` of the image tokens flow, on average over the layers, dropping behind each of ``layer``.

    Several ``keep`` say for each stage how many of the prompt's image tokens stay. ``recycle`` of those that leave live
    on, ten to a token. With ``scale`` no budget is read: each stage lets go ``scale`` times the tokens beyond the rank
    of the attention from the rating words to the image.
    """
    stages = tuple(layer)
    keeps = (keep,) * len(stages) if isinstance(keep, (int, float)) else tuple(keep)
    if len(keeps) != len(stages) or (isinstance(keep, (int, float)) and len(stages) != 3):
        raise BadInput(f"keep={keep!r} and layer={layer!r}: give one budget for each layer, or one for three layers.")
    allot = [partial(_interpolated, stage) if isinstance(keep, (int, float)) else None for stage in range(len(stages))]
    return tuple(
        Step(
            Site("layer", layer=at, after=True),
            score=_rated(at, scale is not None),
            select=Recycled(Stage(Budget(budget), by), recycle, 10, scale),
            compare=lambda evidence, tokens: evidence.features,  # type: ignore[arg-type,return-value]
            action=Merge(proportional=False),
            needs=(Need("hidden", 0), Need("queries", at, window=ALL)),
        )
        for at, budget, by in zip(stages, keeps, allot, strict=True)
    )


def _interpolated(stage: int, count: Tensor, given: Tensor) -> Tensor:
    """Return what a stage keeps of ``given [B]`` image tokens where ``count [B]`` flow on average."""
    share = 576 * count.double() / given.clamp(min=1)
    kept = torch.zeros_like(share)
    for low, high in pairwise(COUNTS):
        between = low[1 + stage] + (share - low[0]) * (high[1 + stage] - low[1 + stage]) / (high[0] - low[0])
        kept = torch.where(share > low[0], between, kept)
    return (kept * given / 576).round().long().clamp(min=1).minimum(given)


def _rated(layer: Depth, each: bool) -> ScoreFn:
    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        part, embedded = evidence.at(layer), evidence.at(0).passage
        assert embedded is not None
        return (each_row if each else from_rows)(part, raters(embedded, part), tokens)

    return score
