"""VLA-Pruner. Liu et al. 2025, arXiv:2511.16449. Authors' code: MINT-SJTU/VLA-Pruner @ fa5bfed (MIT).

As in the code, nothing is dropped before ``past`` control steps have been seen, and the smoothing gives the *oldest*
of them the greatest weight; ``newest=True`` weighs as the paper says. Prefill attention is that of all queries (the
paper's way, and the command the authors give first).

Deviation: a fraction is rounded down, where theirs rounds to the nearest. Where actions come from a denoising expert
(no such model in the authors' code), its attention is averaged over action tokens and denoising steps. The authors read
layer 15 of 32, here the same share of the depth. Attention after a token was dropped counts as 0, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.actions import Drop
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.attention import at_columns
from tithe.scores.history import received, smoothed
from tithe.seams.episode import Past, PolicyEvidence
from tithe.selections.union import Union
from tithe.types import Depth, Need, Site, Step, Tokens


@card(
    slug="vla-pruner",
    title="VLA-Pruner: Temporal-Aware Dual-Level Visual Token Pruning for Efficient Vision-Language-Action Inference",
    year=2025,
    arxiv="2511.16449",
    code="MINT-SJTU/VLA-Pruner",
    family="vision",
    hosts=("vla",),
    fidelity="official",
    saving="real",
    mechanism="Image tokens that are high by the prompt's attention or by the action tokens' attention in the last "
    "control steps are united, and those most unlike each other are kept.",
)
def vla_pruner(
    keep: int | float = 0.25,
    layer: int = 3,
    acts: Depth = 15 / 32,
    past: int = 3,
    decay: float = 0.8,
    newest: bool = False,
) -> Step:
    """Let ``keep`` of the image tokens flow into text layer ``layer`` and those above.

    ``acts``: the layer of the expert whose attention to the prompt counts; ``past``: control steps that are remembered.
    """
    if past < 1:
        raise BadInput(f"past={past!r} is out of range; at least one control step is remembered.")

    def score(evidence: PolicyEvidence, tokens: Tokens) -> Tensor:
        shown = evidence.past("actions", acts)
        if len(shown) < past:
            return torch.full((*tokens.cols[:, 0].shape, 2), torch.inf, device=tokens.cols.device).mT
        read = evidence.at(layer - 1)
        at = torch.arange(shown[0].shape[1], device=tokens.cols.device)[None, None]
        meant = at_columns(received(read)[:, None], read.view.cols, tokens.cols)
        done = at_columns(smoothed(shown, decay, newest)[:, None], at.expand(len(shown[0]), 1, -1), tokens.cols)
        return torch.cat([meant, done], 1)

    return Step(
        Site("layer", layer=layer),
        score=score,  # type: ignore[arg-type]
        compare=lambda evidence, tokens: evidence.features,  # type: ignore[arg-type, return-value]
        select=Union(Budget(keep)),
        action=Drop(),
        needs=(Need("queries", layer - 1), Need("past", acts, how=Past("actions", past))),
    )
