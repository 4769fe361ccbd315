"""TextMonkey's token resampler. Liu et al. 2024, arXiv:2403.04473. Authors' code: Yuliang-Liu/Monkey @ 498e1d9 (MIT).

Deviations: tokens keep their own positions in the prompt, which theirs number anew; all tokens of a picture are
compared, its thumbnail and newlines among them, theirs (``use_global``, off) can set a small view beside the others.
Not built: their shifted-window attention, which is inside the vision tower and trained with it.
``weights``: a resampler trained for this model by ``training/textmonkey.py`` (``vlm``: that of the zoo's model). None
is where theirs begins before training: it adds nothing, and the tokens stay as they are.
"""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.actions.resample import Resample, Resampler
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.redundancy import unlike_later
from tithe.selections.top_k import TopK
from tithe.types import Site, Step
from tithe.zoo.pruners import trained


@card(
    slug="textmonkey",
    title="TextMonkey: An OCR-Free Large Multimodal Model for Understanding Document",
    year=2024,
    arxiv="2403.04473",
    code="Yuliang-Liu/Monkey",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="The image tokens least like any behind them stay, and take in the others by cross-attention.",
)
def textmonkey(keep: int | float = 0.5, weights: str | None = None) -> Step:
    """Keep ``keep`` of the tokens of each picture (theirs 512 of 1024) and let them read all."""
    made = trained("textmonkey", weights) if weights is not None else None
    return Step(
        Site("encoder", tower="image", per="image"),
        score=unlike_later,
        select=TopK(Budget(keep)),
        action=Resample(Resampler(made.of("resampler"))) if made is not None else Keep(),
        suits=made.suits if made is not None else None,
    )
