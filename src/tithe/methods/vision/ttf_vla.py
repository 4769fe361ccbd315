"""TTF-VLA. Liu et al. 2025, arXiv:2508.19257. Authors' code: PKU-XLab/TTF-VLA @ afbd6bf (MIT).

As in the code, a reused token may itself have been reused, until the next keyframe takes all anew, and the attention is
that of the words in the control step before. The defaults are those of the command that the authors give.

Deviation: the authors compare pictures twice, normalised for each of two vision towers, and reuse the halves of a token
apart; here there is one tower and one comparison. The most relevant tokens are counted over all cameras of a robot. The
authors read layer 15 of 32, here the same share of the depth. Nothing is saved: the vision tower runs as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.actions.reuse import Reuse
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.pixels import changed
from tithe.seams.episode import Past, PolicyEvidence
from tithe.selections.refreshed import Refreshed
from tithe.types import Depth, Need, Site, Step, Tokens


@card(
    slug="ttf-vla",
    title="TTF-VLA: Temporal Token Fusion via Pixel-Attention Integration for Vision-Language-Action Models",
    year=2025,
    arxiv="2508.19257",
    code="PKU-XLab/TTF-VLA",
    family="vision",
    hosts=("vla",),
    fidelity="official",
    saving="simulated",
    mechanism="Image tokens of patches that did not change, and that the words did not attend to, are those of the "
    "control step before; every few steps a keyframe takes all anew.",
)
def ttf_vla(change: float = 0.03, relevant: int | float = 70 / 256, interval: int = 3, layer: Depth = 15 / 32) -> Step:
    """Reuse image tokens of the control step before.

    ``change``: the mean change in grey, in the units of the pictures given, above which a patch is taken anew;
    ``relevant``: the image tokens taken anew because text layer ``layer`` attended to them, a share or a count;
    ``interval``: control steps from keyframe to keyframe.
    """
    if interval < 1:
        raise BadInput(f"interval={interval!r} is out of range; a keyframe comes every step at least.")

    def score(evidence: PolicyEvidence, tokens: Tokens) -> Tensor:
        rows, _, n = tokens.cols.shape
        shown = evidence.past("text", layer)
        if evidence.step % interval == 0 or evidence.before is None or not shown:
            return torch.full((rows, 2, n), torch.inf, device=tokens.cols.device)
        assert evidence.pixels is not None and evidence.place is not None and tokens.grids is not None
        moved = changed(evidence.pixels, evidence.before, tokens.grids[0]).flatten(1)
        asked = shown[-1].gather(1, evidence.place.clamp(min=0))
        return torch.stack([moved, asked], 1)

    return Step(
        Site("encoder", tower="image"),
        score=score,  # type: ignore[arg-type]
        select=Refreshed(change, Budget(relevant)),
        action=Reuse(),
        needs=(Need("past", layer, how=Past("text", 1)),),
    )
