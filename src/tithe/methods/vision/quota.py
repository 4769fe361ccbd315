"""QuoTA. Luo et al. 2025, arXiv:2503.08689. Authors' code: MAC-AutoML/QuoTA @ ec194d7 (no licence; facts only).

The decoupled query is text, so it is yours to give: let the model name the objects that the question is about, and pass
the token ids of a question such as "Does the picture show any of: dog, red car? A. yes B. no" as ``query``, and as
``answer`` the id of the token that says yes (32 is "A" in Qwen's vocabularies). Without ``query`` the prompt's own
question is put to every frame.
Deviation: the model at hand scores the frames, where theirs has a second, smaller one; what a frame's share gives
beyond its own tokens goes to the others, where theirs enlarges the frame (their other resizings do as here, in one
round). Tokens stand at the middles of what they show, at their own positions. The number of frames, theirs growing with
the length of the video, is the caller's (``frames.read_frames(count=...)``).
"""

from __future__ import annotations

from collections.abc import Sequence

from tithe.actions.transform import Transform
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.relevance import asked
from tithe.selections.resized import Resized
from tithe.types import Site, Step


@card(
    slug="quota",
    title="QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension",
    year=2025,
    arxiv="2503.08689",
    code="MAC-AutoML/QuoTA",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="The model is asked of each frame alone whether it shows what the question is about; frames share in the "
    "budget by the square of its yes, and are resized to it.",
)
def quota(keep: int | float = 0.27, query: Sequence[int] | None = None, answer: int = 32, power: float = 2.0) -> Step:
    """Keep ``keep`` of a video's tokens, by how likely the model says ``answer`` to ``query`` (ids) of each frame."""
    if query is not None and not len(query):
        raise BadInput("query=() is empty: give the token ids of a question, or None for that of the prompt.")
    if power < 0:
        raise BadInput(f"power={power!r} is out of range; give 0 (all frames alike) or more.")
    return Step(
        Site("encoder", tower="image", per="row"),
        score=lambda evidence, tokens: asked(evidence, tokens, query, answer, power),
        select=Resized(Budget(keep)),
        action=Transform(),
    )
