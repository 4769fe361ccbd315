"""mPLUG-DocOwl2's compressor. Hu et al. 2024, arXiv:2409.03420. Authors' code: X-PLUG/mPLUG-DocOwl @ f91a768.

The compressor itself is ``visual_compressor.py`` of their checkpoint mPLUG/DocOwl2. Deviations: there is no end token
behind a compressed picture. Crops keep the host's own cutting; where a mosaic lost its padding, or does not divide by
the thumbnail's grid, regions are those of adaptive pooling, which overlap by a token. A picture or frame of a single
view, which theirs never is, is its own closer view: the middle token of each block of ``block`` x ``block`` asks it.
``weights``: a compressor trained for this model by ``training/docowl2.py`` (``vlm``: for the zoo's model, with
``block=4``). None has no parameters and is ours: a token becomes its region's mean, weighted by likeness to it.
"""

from __future__ import annotations

from torch import Tensor

from tithe.actions.compress import Compress, Compressor
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.boxes import boxes, looking
from tithe.seams.evidence import Evidence
from tithe.selections.beneath import Beneath
from tithe.types import Site, Step, Tokens
from tithe.zoo.pruners import trained


@card(
    slug="docowl2",
    title="mPLUG-DocOwl2: High-resolution Compressing for OCR-free Multi-page Document Understanding",
    year=2024,
    arxiv="2409.03420",
    code="X-PLUG/mPLUG-DocOwl",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Each token of a page's thumbnail asks, by cross-attention, the tokens of the closer crops that lie "
    "beneath it; the language model sees the thumbnail alone.",
)
def docowl2(weights: str | None = None, block: int = 2) -> Step:
    """Compress each picture into as many tokens as its thumbnail has, a single view into one for each ``block``."""
    if not isinstance(block, int) or block < 1:
        raise BadInput(f"block={block!r} is out of range; the side of a block is a whole number, 1 or more.")
    made = trained("docowl2", weights) if weights is not None else None

    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        return looking(boxes(evidence, tokens, block), tokens, evidence.parts)

    return Step(
        Site("encoder", tower="image", per="image"),
        score=score,
        compare=lambda evidence, tokens: boxes(evidence, tokens, block),
        select=Beneath(),
        action=Compress(Compressor(made.of("compressor") if made is not None else {})),
        suits=made.suits if made is not None else None,
    )
