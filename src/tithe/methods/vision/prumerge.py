"""LLaVA-PruMerge. Shang et al. 2024, arXiv:2403.15388. Authors' code: 42Shawn/LLaVA-PruMerge @ 097c041 (Apache-2.0).

``spatial`` is PruMerge+, which the authors' code runs by default. ``floor`` and ``ceiling`` alike, without ``spatial``,
are its fixed ratio. Deviation: tokens stand at their own places in the prompt, the joint one of the rest at the place
of the last of them, where theirs stand by attention and it comes last. Quartiles are those of one picture, or of one
crop where it has several, where theirs are of the batch. Newlines of a mosaic, which theirs has none of, go. Where the
connector does not map each patch alone, or patches are a mosaic, tokens are mixed behind it.
"""

from __future__ import annotations

from tithe.actions.remix import Remix
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.cls import cls_joint, patch_keys
from tithe.selections.outliers import OutliersAndClusters
from tithe.types import Need, Site, Step


@card(
    slug="prumerge",
    title="LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
    year=2024,
    arxiv="2403.15388",
    code="42Shawn/LLaVA-PruMerge",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Image tokens whose CLS attention is an outlier stay, as many as there are, and take in those whose keys "
    "are like theirs; the others become one token.",
)
def prumerge(
    spatial: bool = True,
    neighbours: int = 32,
    floor: int | float = 1,
    ceiling: int | float | None = None,
    layer: int = -1,
) -> Step:
    """Keep what stands out in ``layer``, between ``floor`` and ``ceiling`` tokens, and tokens at strides (``spatial``).

    ``neighbours``: how many tokens each takes in, one token perhaps into several.
    """
    if neighbours < 1:
        raise BadInput(f"neighbours={neighbours!r} is out of range; a token takes in at least 1 other.")
    return Step(
        Site("encoder", tower="image", per="image"),
        score=lambda evidence, tokens: cls_joint(evidence, layer),
        compare=lambda evidence, tokens: patch_keys(evidence, layer),
        select=OutliersAndClusters(spatial, neighbours, floor, ceiling),
        action=Remix(),
        needs=(Need("queries", layer, tower="image", window=1),),
    )
