"""EfficientVLA. Yang et al. 2025, arXiv:2506.10100. Written from the paper; no authors' code was found.

Three parts: language layers that change their tokens least are left out, image tokens are chosen by relevance to the
task and by diversity, and the action head computes its attention and MLPs in one of several denoising steps only.

Deviation: the paper measures the layers once on a data set; here they are measured in the first control step of an
episode, on its own prompt, and left out from the second on. Where each layer of the action head reads the keys of the
language layer beside it, both are left out. Relevance is the attention that the words pay to a token; how unlike the
key tokens a token is says the likest of them. Layers below ``layer`` always run.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tithe.actions import Drop
from tithe.actions.layers import ShareRounds, SkipLayers
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.attention import at_columns
from tithe.scores.history import received
from tithe.seams.episode import PolicyEvidence
from tithe.selections.critical import Critical
from tithe.selections.top_k import TopK
from tithe.types import TEXT, Need, Site, Step, Tokens


@card(
    slug="efficientvla",
    title="EfficientVLA: Training-Free Acceleration and Compression for Vision-Language-Action Models",
    year=2025,
    arxiv="2506.10100",
    family="vision",
    hosts=("vla",),
    fidelity="oracle",
    saving="real",
    mechanism="Language layers whose output is most like their input are skipped, image tokens that matter to the task "
    "and some unlike them are kept, and the action head reuses its features between denoising steps.",
)
def efficientvla(
    keep: int | float = 56 / 256,
    depth: float | None = None,
    interval: int | None = None,
    layer: int = 2,
    key: int = 4,
    alpha: float = 0.5,
) -> tuple[Step, ...]:
    """Let ``keep`` of the image tokens flow into text layer ``layer``, ``key`` of them the most relevant.

    ``alpha``: the share of the others that is chosen by relevance; ``depth``: the share of language layers that run;
    ``interval``: denoising steps served by one. None means the paper's 22 of 32 layers and 5 steps, and all layers and
    steps where ``keep`` is 1.0.
    """
    whole = keep == 1.0 and isinstance(keep, float)
    depth = (1.0 if whole else 22 / 32) if depth is None else depth
    interval = (1 if whole else 5) if interval is None else interval
    if interval < 1 or key < 1 or not 0 <= alpha <= 1:
        raise BadInput(f"interval={interval!r}, key={key!r}: at least 1; alpha={alpha!r}: a share in [0, 1].")
    tokens = Step(
        Site("layer", layer=layer),
        score=_relevance(layer),
        compare=lambda evidence, tokens: evidence.features,  # type: ignore[arg-type, return-value]
        select=Critical(Budget(keep), key, alpha),
        action=Drop(),
        needs=(Need("queries", layer - 1),),
    )
    layers = Step(Site("depth"), score=_change, select=TopK(Budget(depth, sink=layer)), action=SkipLayers())  # type: ignore[arg-type]
    rounds = Step(Site("model"), action=ShareRounds(interval))  # type: ignore[arg-type]
    return (*((rounds,) if interval > 1 else ()), *((layers,) if depth < 1 else ()), tokens)


def _relevance(layer: int) -> Any:
    def score(evidence: PolicyEvidence, tokens: Tokens) -> Tensor:
        read = evidence.at(layer - 1)
        return at_columns(received(read, tokens.among(TEXT)[:, 0])[:, None], read.view.cols, tokens.cols)

    return score


def _change(evidence: PolicyEvidence, tokens: Tokens) -> Tensor:
    return evidence.features[..., 0][:, None]  # type: ignore[index]
