"""ToDRE. Li et al. 2025, arXiv:2505.18757v2. Written from the paper; no authors' code was found.

Deviation: version 1 names the first stage greedy k-centre; version 2, whose equations were read, is max-sum
diversification and the default (``by="nearest"`` is k-centre). The system prompt of the paper is what stands before
the first image here. An image token attends to no text behind its image, so of one image only the text's share of
attention decides. "7L/8" counts layers from 1; image tokens are gone from the layer behind it. A fraction is rounded
down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from tithe.actions.drop import Drop
from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.crossing import crossing
from tithe.scores.features import connected
from tithe.scores.random import hashed
from tithe.scores.vision import cls_attention
from tithe.selections.diverse import Diverse
from tithe.selections.flowing import WhileAbove
from tithe.types import ALL_ROWS, Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence
    from tithe.types import Depth, Tokens


@card(
    slug="todre",
    title="ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance",
    year=2025,
    arxiv="2505.18757",
    family="vision",
    hosts=("vlm",),
    fidelity="oracle",
    saving="real",
    mechanism="From the image token that CLS attends to most, tokens unlike those chosen are added one by one; deep in "
    "the language model, where text and image hardly attend to each other any more, all image tokens are dropped.",
)
def todre(
    keep: int | float = 0.1,
    layer: Depth = 7 / 8,
    threshold: float = 0.1,
    by: Literal["sum", "nearest"] = "sum",
    pivot: Literal["cls", "random"] = "cls",
    seed: int = 0,
) -> tuple[Step, Step]:
    """Keep diverse tokens of each picture; drop them before ``layer`` where the one before has less than ``threshold``.

    ``pivot``: the first token is CLS's favourite of the whole view, or a random one for towers without CLS. ``by``: how
    like the chosen ones a token is, summed over them or by the nearest.
    """
    if pivot not in ("cls", "random") or by not in ("sum", "nearest"):
        raise BadInput(f"pivot={pivot!r}, by={by!r}: pivot is 'cls' or 'random', by is 'sum' or 'nearest'.")
    diverse = Step(
        Site("encoder", tower="image", per="image"),
        score=_favourite if pivot == "cls" else lambda evidence, tokens: hashed(tokens, 1, 0, seed),
        compare=connected,
        select=Diverse(Budget(keep), by),
        action=Keep(),
        needs=(Need("queries", -1, tower="image", window=1),) if pivot == "cls" else (),
    )

    def before(index: int, layers: int) -> Step:
        return Step(
            Site("layer", layer=layer),
            score=lambda evidence, tokens: crossing(evidence.at(index - 1), tokens),
            select=WhileAbove(threshold),
            action=Drop(),
        )

    relevant = Step(Site("layer", layer=layer), needs=(Need("queries", before=1, window=ALL_ROWS),), per_layer=before)
    return diverse, relevant


def _favourite(evidence: Evidence, tokens: Tokens) -> Tensor:
    score = cls_attention(evidence, -1)
    whole = [part.places for part in evidence.parts if part.whole]
    if not whole:
        return score
    among = torch.zeros_like(score, dtype=torch.bool)
    among[..., torch.cat(whole)] = True
    return torch.where(among, score, score.amin() - 1)
