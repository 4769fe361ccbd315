"""Preplan and anchor tokens (explanation half). Li et al. 2025, arXiv:2510.13554; no code of the authors.

Read a finished answer in one forward over prompt and answer. ``waad`` peaks where the model looks back before a new
chunk (preplan tokens); ``fai`` is high for tokens that later ones keep looking at (anchors). Prompt tokens have
neither, and the last ``near`` tokens no ``fai``: undefined is NaN.

Deviation: heads are grouped for each sequence, which the paper leaves open, and the share of heads is rounded down.
``far`` is 100 as in the paper's second version (50 in the first; None, to the end, in its analysis). All layers are
read, as in the analysis; for training the paper takes five of the middle third: ``layer=(1/3, 5/12, 1/2, 7/12, 2/3)``.
Layers with a sliding window look near by construction: leave them out through ``layer``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.rhythm import Rhythm, by_span, of_heads, onlookers
from tithe.seams.evidence import Evidence
from tithe.types import Depth, Need, Site, Step, Tokens


@card(
    slug="preplan-anchor",
    title="Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm Enables Fine-Grained Policy Optimization",
    year=2025,
    arxiv="2510.13554",
    family="explain",
    hosts=("llm", "vlm"),
    fidelity="oracle",
    saving="none",
    mechanism="Heads that look near show where a chunk begins, by how far each token looks back; heads that look far "
    "show which tokens later ones return to.",
)
def preplan_anchor(
    prompt: int | Sequence[int] = 0,
    layer: Depth | Sequence[Depth] | None = None,
    clip: int = 10,
    near: int = 10,
    far: int | None = 100,
    share: float = 0.3,
) -> Step:
    """Score the tokens after the first ``prompt`` of each row: windowed attention distance and future influence."""
    if not 0.0 < share <= 1.0:
        raise BadInput(f"share={share!r} is out of range; the share of heads in a group lies in (0, 1].")
    rhythm = Rhythm(clip, near, far)
    layers = (layer,) if layer is None or isinstance(layer, (int, float)) else tuple(layer)

    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        parts = [part.results[rhythm.name] for part in evidence.layers() if rhythm.name in part.results]
        span, reach, echo = (torch.cat([part[name].flatten(1, 2) for part in parts], 1) for name in _PARTS)
        valid = tokens.valid[:, 0]
        first = torch.as_tensor(prompt, device=valid.device).expand(valid.shape[0])[:, None]
        answer = valid & (valid.cumsum(-1) > first)
        local, distant = by_span(span, answer, share)
        seen_by = onlookers(valid, near, far)
        influence = of_heads(echo[..., -valid.shape[1] :], distant) / seen_by
        both = torch.stack([of_heads(reach, local), influence], 1)
        defined = torch.stack([answer, answer & (seen_by > 0)], 1)
        return both.masked_fill(~defined, torch.nan)

    needs = tuple(Need("rows", one, reducer=rhythm) for one in layers)
    return Step(Site("output"), score=score, needs=needs, outputs=("waad", "fai"))


_PARTS = ("span", "reach", "echo")
