"""Focus-DETR. Zheng et al. 2023, arXiv:2307.12612.

Authors' code: huawei-noah/noah-research, Focus-DETR @ aa0f80c (Apache-2.0); in MindSpore linxid/Focus-DETR @ 1610f23.

Before the encoder of a deformable DETR a scorer says of every token of every level how likely an object lies there,
from the coarsest level to the finest: each level's features are raised by the score of the level above it. Of the
tokens the ``keep`` best enter the first encoder layer and a ``cascade`` of fewer the later ones; the others stay as
they are. In each layer the ``fine`` tokens of highest class score times foreground score first attend to one another in
full.

``FocusEncoder`` stands in place of the encoder of a transformers ``DeformableDetrModel`` and uses its layers. As in the
authors' code all layers read the features that came from the backbone (``updated=True``: those that the layers before
wrote), the class head that scores is the detector's own, and tokens whose proposal leaves the picture count as zero.
Deviation: padding scores one less than the lowest token, not the same, so that it is never taken for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from transformers.modeling_outputs import BaseModelOutput

from tithe.errors import BadInput
from tithe.types import Card

Shapes = Sequence[tuple[int, int]]

CARD = Card(
    slug="focus-detr",
    title="Less is More: Focus Attention for Efficient DETR",
    year=2023,
    arxiv="2307.12612",
    code="huawei-noah/noah-research",
    family="vision",
    hosts=(),
    fidelity="official",
    saving="real",
    mechanism="A scorer finds foreground tokens over all scales; fewer of them are encoded from layer to layer, "
    "the finest attending to one another in full.",
)


class Scorer(nn.Module):
    """Score tokens ``[B, n, width]`` by what they hold and by the mean of all: ``[B, n]`` logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.second = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(),
            nn.Linear(width // 4, 1),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[B, n]``."""
        local, shared = self.first(tokens).chunk(2, -1)
        both = torch.cat([local, shared.mean(1, keepdim=True).expand_as(local)], -1)
        return self.second(both).squeeze(-1)


def foreground(levels: Sequence[Tensor], shapes: Shapes, scorer: nn.Module, gains: Tensor) -> Tensor:
    """Score all tokens, ``[B, sum of h * w]``, from the coarsest level (the last) to the finest.

    ``levels`` are ``[B, h * w, d]`` each, ``gains [levels - 1]`` says how much of the score above, resized, multiplies
    into a level; the first gain belongs to the second coarsest.
    """
    scores: list[Tensor] = []
    for place, (tokens, shape) in enumerate(zip(reversed(levels), reversed(shapes), strict=True)):
        if scores:
            above = interpolate(scores[-1], shape, mode="bilinear", align_corners=True).flatten(1)
            tokens = tokens * (1 + gains[place - 1] * above[..., None])
        scores.append(scorer(tokens).unflatten(1, (1, *shape)))
    return torch.cat([one.flatten(1) for one in reversed(scores)], 1)


def inside(shapes: Shapes, valid: Tensor) -> Tensor:
    """Return ``[B, n]``: whether the proposal at a token, of 0.05 * 2^level of the picture, is one.

    ``valid [B, n]`` tells real tokens from padding. Its centre and size must lie between 0.01 and 0.99.
    """
    parts = []
    for level, (cut, (rows, columns)) in enumerate(
        zip(valid.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ):
        real = cut.unflatten(1, (rows, columns))
        height, width = real[:, :, :1].sum(1, keepdim=True), real[:, :1].sum(2, keepdim=True)
        y = (torch.arange(rows, device=valid.device) + 0.5)[:, None] / height
        x = (torch.arange(columns, device=valid.device) + 0.5) / width
        good = (y > 0.01) & (y < 0.99) & (x > 0.01) & (x < 0.99)
        parts.append((good & (0.01 < 0.05 * 2**level < 0.99)).flatten(1))
    return torch.cat(parts, 1) & valid


def foreground_targets(
    boxes: Sequence[Tensor], shapes: Shapes, size: int, spans: Sequence[tuple[float, float]]
) -> Tensor:
    """Return ``[B, n]``: 1 where the centre of a token lies inside a box that its level is for.

    ``boxes`` holds ``[m, 4]`` (left, top, right, bottom) in pixels for each picture of ``size`` pixels a side;
    ``spans`` gives each level the smallest (exclusive) and largest distance to the farthest side of the box.
    """
    rows = []
    for mine in boxes:
        marks = []
        for (height, width), (low, high) in zip(shapes, spans, strict=True):
            y, x = ((torch.arange(n, device=mine.device) * (size // n) + size // n // 2) for n in (height, width))
            across, down = x.repeat(height)[:, None], y.repeat_interleave(width)[:, None]
            off = torch.stack([across - mine[:, 0], down - mine[:, 1], mine[:, 2] - across, mine[:, 3] - down])
            farthest = off.amax(0)
            marks.append(((off.amin(0) > 0) & (farthest > low) & (farthest <= high)).any(-1))
        rows.append(torch.cat(marks))
    return torch.stack(rows).float()


def foreground_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (gamma 2, alpha 0.25) of ``scores [B, n]``: a sum per foreground token, then the mean over rows."""
    miss = (targets - scores.sigmoid()).abs()
    share = 0.25 * targets + 0.75 * (1 - targets)
    loss = share * miss.square() * binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (loss.sum(1) / targets.sum(1).clamp(min=1)).mean()


class Fine(nn.Module):
    """Full attention among the tokens that matter most, added and normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(width, heads, batch_first=True), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, positions: Tensor, scores: Tensor, count: int) -> Tensor:
        """Return ``tokens [B, n, d]`` with the ``count`` of highest ``scores [B, n]`` renewed."""
        chosen = scores.topk(min(count, scores.shape[1]), 1).indices[..., None].expand(-1, -1, tokens.shape[-1])
        mine, where = tokens.gather(1, chosen), positions.gather(1, chosen)
        mixed, _ = self.attention(mine + where, mine + where, mine, need_weights=False)
        return tokens.scatter(1, chosen, self.norm(mine + mixed))


class FocusEncoder(nn.Module):
    """The encoder of a ``DeformableDetrModel`` that encodes foreground tokens only.

    ``encoder`` is the one it takes the layers of, ``classes`` the head that names tokens. ``keep`` is the fraction of
    tokens in the first layer, ``cascade`` what each layer has of those, ``fine`` how many attend in full (0: none do).
    After a forward ``scores [B, n]`` holds the foreground logits, to be trained with ``foreground_loss``, and
    ``counts`` how many tokens each layer encoded.
    """

    def __init__(
        self, encoder: Any, classes: nn.Module, keep: float = 0.5, fine: int = 300, updated: bool = False,
        cascade: Sequence[float] = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2),
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < keep <= 1:
            raise BadInput(f"keep={keep}. Possible: above 0, to 1.")
        if len(cascade) < len(encoder.layers):
            raise BadInput(f"cascade={tuple(cascade)} for {len(encoder.layers)} layers.")
        config = encoder.config
        width, heads = config.d_model, config.encoder_attention_heads
        self.layers: Any = encoder.layers
        self.classes = classes
        self.reference = encoder.get_reference_points
        self.keep, self.fine, self.updated, self.cascade = keep, fine, updated, tuple(cascade)
        self.project, self.norm, self.scorer = nn.Linear(width, width), nn.LayerNorm(width), Scorer(width)
        self.gains = nn.Parameter(torch.empty(config.num_feature_levels - 1).uniform_(-0.3, 0.3))
        self.enhance: Any = nn.ModuleList(Fine(width, heads) for _ in self.layers)
        self.scores: Tensor | None = None
        self.counts: list[int] = []

    def score(self, hidden: Tensor, positions: Tensor, valid: Tensor, shapes: Shapes) -> Tensor:
        """Return foreground logits ``[B, n]``; another rule overrides this."""
        tokens = self.norm(self.project((hidden + positions) * inside(shapes, valid)[..., None]))
        return foreground(tokens.split([h * w for h, w in shapes], 1), shapes, self.scorer, self.gains)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        spatial_position_embeddings: Tensor,
        spatial_shapes: Tensor,
        spatial_shapes_list: Shapes,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        **_: Any,
    ) -> BaseModelOutput:
        """Encode ``inputs_embeds [B, n, d]``; arguments and result are those of the encoder replaced."""
        hidden, valid = inputs_embeds, attention_mask.bool()
        raw = self.score(hidden, spatial_position_embeddings, valid, spatial_shapes_list)
        self.scores, self.counts = raw, []
        scores = raw.masked_fill(~valid, float(raw.detach().min()) - 1)
        allowed = (valid.sum(1) * self.keep).int() + 1
        most = min(int(allowed.max()), scores.shape[1])
        reference = self.reference(tuple(spatial_shapes_list), valid_ratios, device=hidden.device)
        for layer, enhance, share in zip(self.layers, self.enhance, self.cascade, strict=False):
            count = max(int(share * most), 1)
            best, chosen = scores.topk(count, 1)
            self.counts.append(count)
            pick = chosen[..., None].expand(-1, -1, hidden.shape[-1])
            query, where = hidden.gather(1, pick), spatial_position_embeddings.gather(1, pick)
            if self.fine:
                query = enhance(query, where, self.classes(query).amax(-1) * best, self.fine)
            mixed, _ = layer.self_attn(
                hidden_states=query, attention_mask=valid, position_embeddings=where,
                encoder_hidden_states=hidden if self.updated else inputs_embeds, encoder_attention_mask=valid,
                reference_points=reference.take_along_dim(chosen[..., None, None], 1), spatial_shapes=spatial_shapes,
                spatial_shapes_list=spatial_shapes_list, level_start_index=level_start_index,
            )  # fmt: skip
            query = layer.self_attn_layer_norm(query + mixed)
            query = layer.final_layer_norm(query + layer.mlp(query))
            # A picture with much padding has fewer tokens to encode than the batch's largest.
            mine = (torch.arange(count, device=hidden.device) < allowed[:, None])[..., None]
            hidden = hidden.scatter(1, pick, torch.where(mine, query, hidden.gather(1, pick)))
        return BaseModelOutput(last_hidden_state=hidden)
