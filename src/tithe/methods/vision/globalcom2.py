"""GlobalCom2. Liu et al. 2025, arXiv:2501.05179. Authors' code: xuyang-liu16/GlobalCom2 @ 96b2d00 (Apache-2.0).

A picture without a thumbnail keeps the best of each of its views alike, as a thumbnail is kept. Deviation: a count as
``keep`` is of all image tokens, newlines included, which always stay, as in the authors' code. Kept tokens stand in
order at their own positions in the prompt, where theirs of the thumbnail stand by score and all count anew; of a padded
picture the authors' code keeps the same tokens, but sets them down as if the padding lay behind them, and keeps the
newlines of lines that are all padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.cls import cls_logits
from tithe.scores.views import cells, emphasis, enlarged, regions, unit_per_part, whole_view
from tithe.scores.vision import cls_attention
from tithe.selections.crops import ByDensity
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence
    from tithe.types import Tokens


@card(
    slug="globalcom2",
    title="Compression with Global Guidance: Towards Training-free High-Resolution MLLMs Acceleration",
    year=2025,
    arxiv="2501.05179",
    code="xuyang-liu16/GlobalCom2",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="What the CLS token of the thumbnail looks at sets how much of each crop is kept; in a crop the tokens "
    "stay that rank high both there and in the thumbnail enlarged.",
)
def globalcom2(keep: int | float = 0.25, temperature: float = 10.0, layer: int = -1, logits: bool = True) -> Step:
    """Keep ``keep`` of the thumbnail, and of each crop as much more or less as the thumbnail says.

    ``temperature`` of the softmax over crops: lower sets them further apart. ``logits``: CLS is read before the softmax
    of the tower's attention, as in the authors' code; False: after it.
    """
    if temperature <= 0:
        raise BadInput(f"temperature={temperature!r} is out of range; it is above 0.")
    return Step(
        Site("encoder", tower="image", per="image"),
        score=lambda evidence, tokens: _guided(evidence, tokens, temperature, layer, logits),
        select=ByDensity(Budget(keep)),
        action=Keep(),
        needs=(Need("queries", layer, tower="image", window=1),),
    )


def _guided(evidence: Evidence, tokens: Tokens, temperature: float, layer: int, logits: bool) -> Tensor:
    """Rank of each token, and density of the part that it is of: ``[1, 2, n]``."""
    local = (cls_logits if logits else cls_attention)(evidence, layer)[0, 0]
    parts, density = evidence.parts, torch.ones_like(local)
    whole = whole_view(parts)
    if whole is None:
        return torch.stack([local, density])[None]
    view, (crops, places) = parts[whole], cells(parts, whole)
    region = regions(view.grid, places).to(local.device)
    sums = torch.zeros(len(crops), device=local.device).index_add_(0, region, local[view.places])
    dense = torch.ones(len(parts), dtype=torch.float64, device=local.device)
    dense[crops] = emphasis(sums, temperature)
    inside = (tokens.parts >= 0) & (tokens.parts != whole)
    lines = _lines(tokens, inside, dict(zip(crops, places, strict=True)))
    size = (lines, int(inside.sum()) // lines)
    wide = enlarged(local[view.places], view.grid, inside.nonzero()[:, 0], size, len(local))
    ranked = unit_per_part(local, tokens.parts) + unit_per_part(wide, tokens.parts)
    rank = torch.where(inside, ranked, local)
    return torch.stack([rank, dense[tokens.parts.clamp(min=0)].float()])[None]


def _lines(tokens: Tokens, inside: Tensor, places: dict[int, tuple[int, int]]) -> int:
    """How many lines of tokens the mosaic has."""
    assert tokens.origin is not None
    rows = zip(tokens.parts[inside].tolist(), tokens.origin[inside, 1].tolist(), strict=True)
    return len({(places[part][0], row) for part, row in rows})
