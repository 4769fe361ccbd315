"""STTS. Zhang et al. 2026, arXiv:2603.18004. Authors' code: allenai/STTS (Apache-2.0), read in a copy of its files.

Deviations: the vision tower reads all patches; only the language model is spared, so nothing is packed, and the bias
by which their tower attends less to what will go stands in training alone. The scorer reads the values of the layer
after their cut, a linear image of the normalised hidden states that they read. Tokens of pictures are scored as
frames are, where theirs prunes clips alone; the first frame stays whole only as far as the budget goes. Newlines go.
``weights``: a scorer trained for this model by ``training/stts.py`` (``scenes``: that of the zoo's model), which names
its own ``layer``. None scores by what the auxiliary loss teaches, one less the cosine with the frame before.
"""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.spacetime import Scorer, news
from tithe.selections.top_k import TopK
from tithe.types import Depth, Need, Site, Step
from tithe.zoo.pruners import trained

DEPTH = 0.15


@card(
    slug="stts",
    title="Unified Spatio-Temporal Token Scoring for Efficient Video VLMs",
    year=2026,
    arxiv="2603.18004",
    code="allenai/STTS",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="A small scorer compares each token of a frame, early in the vision tower, with that place one frame "
    "before; it learns time from their cosine and space from the language model's gradients.",
)
def stts(keep: int | float = 0.5, weights: str | None = None, layer: Depth | None = None) -> Step:
    """Keep the ``keep`` tokens of all frames together that score highest, the first frame of each clip before all."""
    made = trained("stts", weights) if weights is not None else None
    at = layer if layer is not None else (made.layers("scorer")[0] if made is not None else DEPTH)
    scorer = Scorer(made.of("scorer", made.layers("scorer")[0])) if made is not None else None
    return Step(
        Site("encoder", tower="image", per="row"),
        score=lambda evidence, tokens: news(evidence, tokens, at, scorer),
        select=TopK(Budget(keep)),
        action=Keep(),
        needs=(Need("queries", at, tower="image"),),
        suits=made.suits if made is not None else None,
    )
