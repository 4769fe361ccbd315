"""TS-LLaVA. Qu et al. 2024, arXiv:2411.11066. Authors' code: tingyu215/TS-LLaVA @ 03cdeae (Apache-2.0).

Two parts: ``tithe.frames.collage(frames, 6)`` tiles some frames into one picture before the encoder, and this method,
after it, keeps that picture whole and samples the tokens of all frames. The prompt holds the frames as pictures (or
one clip) and the collage as the last picture, the authors' order (their V2; ``thumbnail=0``, where it comes first, is
their Y2).
Deviation: ``keep`` counts the thumbnail's tokens in, where theirs counts the sampled ones alone (2880 of 50 x 576,
which with the thumbnail is 0.118); tokens keep their own positions; text between pictures and newlines stay. A
prompt with one picture has no collage, and is sampled itself.
"""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.vision import alike
from tithe.selections.thumbnail import WholeAndSampled
from tithe.types import Site, Step


@card(
    slug="ts-llava",
    title="TS-LLaVA: Constructing Visual Tokens through Thumbnail-and-Sampling for Training-Free Video Large Language "
    "Models",
    year=2024,
    arxiv="2411.11066",
    code="tingyu215/TS-LLaVA",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="A collage of a few frames stays whole; beside it the language model sees tokens sampled evenly from all "
    "frames.",
)
def ts_llava(keep: int | float = 0.118, thumbnail: int = -1) -> Step:
    """Keep ``keep`` of all image tokens: picture ``thumbnail`` whole, and of the others evenly spread ones."""
    return Step(
        Site("encoder", tower="image", per="row"),
        score=lambda evidence, tokens: alike(tokens),
        select=WholeAndSampled(Budget(keep), thumbnail),
        action=Keep(),
    )
