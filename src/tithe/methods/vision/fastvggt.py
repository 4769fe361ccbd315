"""FastVGGT. Shen et al. 2025, arXiv:2509.02560. Authors' code: mystorm16/FastVGGT @ a4dd237 (no licence: not copied).

As in the code, salient tokens stand at an even stride over all tokens, the draw is the same in every layer, and with
the default ``keep`` every patch that may join does: a quarter of the later frames' patches, the whole first frame, the
special tokens and the salient ones are left. A destination that is salient is there twice, as it is and as a mean.

Deviation: cosines are float32 (bfloat16 there); the draw is made on the CPU, so that devices agree; each row of a batch
ranks its own tokens (all go by the first row's there); patches beyond the last whole region join others but draw no
destination; outputs are handed back before the output projection, which is linear in each token, not behind it.
"""

from __future__ import annotations

from torch import Tensor

from tithe.actions.join import Join
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.seams.evidence import Evidence
from tithe.selections.regions import Regions
from tithe.types import Depth, Site, Step, Tokens


@card(
    slug="fastvggt",
    title="FastVGGT: Training-Free Acceleration of Visual Geometry Transformer",
    year=2025,
    arxiv="2509.02560",
    code="mystorm16/FastVGGT",
    family="vision",
    hosts=("vggt",),
    fidelity="official",
    saving="real",
    mechanism="In every attention over all frames, patches join the destination most like them (the reference frame, "
    "one random patch a region) before attention and get its output after it; salient tokens stay apart.",
)
def fastvggt(keep: int | float = 0.1, layer: Depth = 0, side: int = 2, salient: float = 0.1, seed: int = 33) -> Step:
    """Join tokens in every global layer from ``layer`` on, down to ``keep`` of them or as far as they can be joined.

    ``side``: of a region, in patches; ``salient``: the share of tokens that join none.
    """
    if side < 1:
        raise BadInput(f"side={side!r} is out of range; a region is at least one patch wide.")
    if not 0 <= salient <= 1:
        raise BadInput(f"salient={salient!r} is out of range; a share of the tokens lies in [0, 1].")
    return Step(
        Site("query", tower="image", since=layer),
        compare=_entering,
        select=Regions(Budget(keep), side, salient, seed),
        action=Join(),
    )


def _entering(evidence: Evidence, tokens: Tokens) -> Tensor:
    hidden = evidence.here.hidden
    assert hidden is not None
    return hidden
