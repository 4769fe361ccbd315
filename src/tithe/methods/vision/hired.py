"""HiRED. Arif et al. 2024, arXiv:2408.10945. Authors' code: hasanar1f/HiRED @ 502d6dd (MIT).

A picture of one view (LLaVA 1.5) keeps the best by ``layer``, as the authors' code for LLaVA 1.5 does; one in several
tiles whose places the host does not know (InternVL) is refused. Deviation: patches that only show padding are no
candidates (the authors' code may choose and then lose them), and the budget is of the tokens that are shown. Newline
tokens, which the authors' code does without, go when anything goes. Kept tokens stay at their own positions in the
prompt, where theirs count anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.views import bands as banded
from tithe.scores.views import cells, regions, whole_view
from tithe.scores.vision import cls_attention
from tithe.selections.crops import ThumbnailFirst
from tithe.selections.top_k import highest
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence
    from tithe.types import Tokens


@card(
    slug="hired",
    title="HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models in "
    "Resource-Constrained Environments",
    year=2024,
    arxiv="2408.10945",
    code="hasanar1f/HiRED",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Where a thumbnail's CLS attention falls in the first layer shares the budget out over the crops; in "
    "each view the tokens that CLS attends to most in a late layer stay.",
)
def hired(keep: int | float = 0.2, alpha: float = 0.5, layer: int = -2, early: int = 0, bands: bool = True) -> Step:
    """Give the thumbnail ``alpha`` of the budget, the crops the rest by its attention in layer ``early``.

    ``bands``: the thumbnail is cut into runs of its flattened raster, as the authors' code does; False: into the
    regions that the crops show, as the paper says.
    """
    if not 0.0 <= alpha <= 1.0:
        raise BadInput(f"alpha={alpha!r} is out of range; the thumbnail's share of the budget lies in [0, 1].")
    return Step(
        Site("encoder", tower="image", per="image"),
        score=lambda evidence, tokens: _by_view(evidence, tokens, layer),
        allot=lambda evidence, tokens: _pointed_at(evidence, early, 1 - alpha, bands),
        select=ThumbnailFirst(Budget(keep), alpha),
        action=Keep(),
        needs=tuple(Need("queries", one, tower="image", window=1) for one in (early, layer)),
    )


def _by_view(evidence: Evidence, tokens: Tokens, layer: int) -> Tensor:
    late, whole = cls_attention(evidence, layer), whole_view(evidence.parts)
    in_whole = (tokens.parts == (-1 if whole is None else whole)) & (tokens.parts >= 0)
    return torch.cat([late.masked_fill(~in_whole, -torch.inf), late.masked_fill(in_whole, -torch.inf)], 1)


def _pointed_at(evidence: Evidence, early: int, share: float, bands: bool) -> Tensor:
    """How many of the thumbnail's best ``share`` of tokens lie where each crop shows more, ``[parts]``."""
    parts, seen = evidence.parts, cls_attention(evidence, early)[0, 0]
    whole = whole_view(parts)
    if whole is None:
        return seen.new_tensor([float(len(part.places)) for part in parts])
    score, grid = seen[parts[whole].places], parts[whole].grid
    best = highest(score, torch.tensor([max(int(len(score) * share), 1)], device=score.device))
    crops, places = cells(parts, whole)
    region = (banded(grid, len(crops)) if bands else regions(grid, places)).to(score.device)
    found = torch.zeros(len(parts), device=score.device)
    found[crops] = region[best].bincount(minlength=len(crops)).float()
    return found
