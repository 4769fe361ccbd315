"""BiFormer. Zhu et al. 2023, arXiv:2303.08810. Authors' code: rayleizhu/BiFormer @ 1697bbb (MIT).

An image is cut into regions. The means of a region's queries and keys say which ``keep`` regions it is routed to, and
each of its queries then attends to every token of those, whatever lies between them: content decides what is read, and
the work is dense matrix products on gathered regions. No gradient passes through the choice; queries and keys learn it
by the fine attention that they serve as well. ``local`` is the depth-wise convolution of the values that is added.

As in the authors' code logits are divided by the square root of the whole width, not of one head's.
Deviations: keys and values are not pooled inside a region, and the routing has no weights of its own; both are options
of the authors' code that none of their published models uses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tithe.errors import BadInput
from tithe.types import Card

CARD = Card(
    slug="biformer",
    title="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    year=2023,
    arxiv="2303.08810",
    code="rayleizhu/BiFormer",
    family="vision",
    hosts=(),
    fidelity="official",
    saving="real",
    mechanism="Each region of an image is routed to the few regions whose mean keys match its mean query; its tokens "
    "attend to every token of those.",
)


def to_regions(image: Tensor, side: int) -> Tensor:
    """Cut ``image [B, rows, columns, d]`` into ``side * side`` regions: ``[B, side * side, tokens of one, d]``.

    Raises:
        BadInput: if ``side`` does not divide rows and columns.
    """
    rows, columns = image.shape[1:3]
    if rows % side or columns % side:
        raise BadInput(f"regions={side} do not divide an image of {rows} by {columns} tokens.")
    cut = image.unflatten(2, (side, -1)).unflatten(1, (side, -1))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def to_image(regions: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Undo ``to_regions`` for an image of ``grid = (rows, columns)`` tokens."""
    cut = regions.unflatten(2, (grid[0] // side, grid[1] // side)).unflatten(1, (side, side))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def route(q: Tensor, k: Tensor, keep: int) -> Tensor:
    """Return ``[B, R, keep]``: the regions each is routed to, best first, from ``q, k [B, R, n, d]``; no gradient."""
    return (q.detach().mean(2) @ k.detach().mean(2).mT).topk(keep, -1).indices


def routed_attention(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, heads: int) -> Tensor:
    """Attend from each region to the regions in ``routes [B, R, r]``.

    ``q, k [B, R, n, d]``, ``v [B, R, n, e]`` of R regions of n tokens. Returns ``[B, R, n, e]``. Work and memory grow
    with ``R * n * r * n``, not with the square of all tokens.
    """
    row = torch.arange(len(q), device=q.device)[:, None, None]
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(2, 3)
        for part in (q, k[row, routes].flatten(2, 3), v[row, routes].flatten(2, 3))
    )
    mixed = scaled_dot_product_attention(query, key, value, scale=q.shape[-1] ** -0.5)
    return mixed.transpose(2, 3).flatten(3)


class BiLevelRoutingAttention(nn.Module):
    """A layer of bi-level routing attention on ``[B, rows, columns, width]``.

    ``regions`` is their number along one side of the image, ``keep`` how many of them each reads (all: full
    attention), ``local`` the width of the convolution of the values, 0 for none.
    """

    def __init__(self, width: int, heads: int = 8, regions: int = 7, keep: int = 4, local: int = 3) -> None:
        super().__init__()
        if width % heads:
            raise BadInput(f"width={width} is no multiple of heads={heads}.")
        if not 0 < keep <= regions**2:
            raise BadInput(f"keep={keep} of {regions**2} regions. Possible: 1 to {regions**2}.")
        if local < 0 or (local and local % 2 == 0):
            raise BadInput(f"local={local}: the convolution of the values has an odd width, or 0.")
        self.heads, self.regions, self.keep = heads, regions, keep
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.local = nn.Conv2d(width, width, local, padding=local // 2, groups=width) if local else None

    def choose(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the regions that each region reads, ``[B, R, keep]``; another rule overrides this."""
        return route(q, k, self.keep)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``[B, rows, columns, width]``."""
        projected, grid = self.qkv(hidden), (hidden.shape[1], hidden.shape[2])
        q, k, v = to_regions(projected, self.regions).chunk(3, -1)
        mixed = to_image(routed_attention(q, k, v, self.choose(q, k), self.heads), self.regions, grid)
        if self.local is not None:
            values = projected[..., -hidden.shape[-1] :].permute(0, 3, 1, 2)
            mixed = mixed + self.local(values).permute(0, 2, 3, 1)
        return self.out(mixed)
