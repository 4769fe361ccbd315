"""Free Video-LLM. Han et al. 2024, arXiv:2410.10441. Authors' code: contrastive/FreeVideoLLM @ 1d62394 (MIT).

Deviation: relevance is the cosine of image tokens and of the question's embeddings as the language model reads them,
where theirs is that of a second model, CLIP, which the checkpoint does not hold. Tokens stand at their own places frame
by frame, where theirs come path by path, and a frame that two paths show in detail is shown once. Newlines stay.
The code takes the region of interest on a raster of half as many rows, each two rows of the frame side by side
(``folded``); the paper's is the frame's own (``folded=False``).
"""

from __future__ import annotations

from tithe.actions.pool import Pool
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.relevance import frames_and_pairs
from tithe.selections.paths import Paths
from tithe.types import Site, Step


@card(
    slug="free-video-llm",
    title="Free Video-LLM: Prompt-guided Visual Perception for Efficient Training-free Video LLMs",
    year=2024,
    arxiv="2410.10441",
    code="contrastive/FreeVideoLLM",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="The frames that the question is most about, and some spread evenly, are shown in detail within the "
    "region that it is about; all frames are shown coarsely.",
)
def free_video_llm(
    slow: int = 3, middle: int = 5, fast: int = 50, grid: int = 4, roi: float = 0.8, folded: bool = True
) -> Step:
    """Show ``slow`` relevant and ``middle`` even frames in detail, ``fast`` ones as ``grid x grid`` means.

    ``roi``: the share of a frame that its region of interest takes (1.0: all of it).
    """
    for name, value, least in (("slow", slow, 0), ("middle", middle, 0), ("fast", fast, 0), ("grid", grid, 1)):
        if isinstance(value, bool) or value < least:
            raise BadInput(f"{name}={value!r} is out of range; give {least} or more.")
    if not slow + middle + fast:
        raise BadInput("slow=0, middle=0 and fast=0 show no frame: give 1 or more to one of them.")
    if not 0.0 < roi <= 1.0:
        raise BadInput(f"roi={roi!r} is out of range; the share of a frame lies in (0, 1].")
    return Step(
        Site("encoder", tower="image", per="row"),
        score=frames_and_pairs,
        select=Paths(slow, middle, fast, grid, roi, folded),
        action=Pool(),
    )
