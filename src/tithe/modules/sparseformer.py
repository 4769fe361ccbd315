"""SparseFormer, bootstrapped. Gao et al. 2024, arXiv:2312.01987 (first in 2023, arXiv:2304.03768).

Authors' code: showlab/sparseformer @ f4484c4 (MIT).

A few latent tokens stand for an image, each with a region of interest (RoI). In each of ``repeats`` turns through one
shared focusing block a token samples ``points`` features inside its RoI, mixes them by weights that it makes itself,
takes in where its RoI is, attends to the other tokens and moves its RoI. A last sampling in the width of a trained ViT
hands the tokens, beside a class token, to the later blocks of that ViT. Only the focusing part and the first of these
blocks are trained, without labels, so that the last class token is the ViT's own.

As in the authors' bootstrapped models the offsets of the points are brought to a deviation of a third of the RoI, their
gradients are not clipped, and the mixing has neither biases nor an activation between its two products. Deviation: the
script that bootstraps is not published; the loss here is ``likeness``, one minus the cosine of the last class tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, gelu, grid_sample, layer_norm, max_pool2d

from tithe.errors import BadInput
from tithe.modules.blocks import Block
from tithe.types import Card

CARD = Card(
    slug="sparseformer",
    title="Bootstrapping SparseFormers from Vision Foundation Models",
    year=2024,
    arxiv="2312.01987",
    code="showlab/sparseformer",
    family="vision",
    hosts=(),
    fidelity="official",
    saving="real",
    mechanism="A few latent tokens, each with a region of interest that it moves, sample the image and pass the later "
    "blocks of a frozen ViT.",
)


def moved(roi: Tensor, change: Tensor) -> Tensor:
    """Move ``roi [..., 4]`` (left, top, right, bottom) by ``change [..., 4]``: shifts in its own size, log scales."""
    centre, size = (roi[..., 2:] + roi[..., :2]) / 2, (roi[..., 2:] - roi[..., :2]).abs()
    centre, size = centre + change[..., :2] * size, size * change[..., 2:].exp()
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def points_in(roi: Tensor, offsets: Tensor) -> Tensor:
    """Place ``offsets [..., P, 2]``, brought to mean 0 and deviation a third, in ``roi [..., 4]``: ``[..., P, 2]``."""
    spread = (offsets - offsets.mean(-2, keepdim=True)) / (3 * (offsets.std(-2, keepdim=True) + 1e-5))
    centre, size = (roi[..., 2:] + roi[..., :2]) / 2, roi[..., 2:] - roi[..., :2]
    return centre[..., None, :] + spread * size[..., None, :]


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Read ``features [B, c, h, w]`` at ``points [B, n, P, 2]`` (x, y from 0 to 1) bilinearly: ``[B, n, P, c]``."""
    read = grid_sample(features, 2 * points - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return read.permute(0, 2, 3, 1)


def roi_encoding(roi: Tensor, width: int, longest: float = 128.0) -> Tensor:
    """Return ``[..., width]``: sines and cosines of the sides, at frequencies from 1 to ``longest``; no gradient."""
    rates = torch.linspace(0, math.log(longest), width // 4, dtype=roi.dtype, device=roi.device).exp()
    angles = math.pi * roi.detach()[..., None] * rates
    return torch.cat([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)


def grid_rois(side: int, width: float = 0.5) -> Tensor:
    """Return ``side * side`` RoIs of ``width``, evenly over the image: ``[side * side, 4]``, row after row."""
    line = torch.linspace(0, 1, side) * (1 - width) if side > 1 else torch.tensor([(1 - width) / 2])
    corner = torch.cartesian_prod(line, line).flip(-1)
    return torch.cat([corner, corner + width], -1)


def small_norm(width: int) -> nn.LayerNorm:
    """Return a LayerNorm whose output starts with length 1."""
    norm = nn.LayerNorm(width)
    nn.init.constant_(norm.weight, width**-0.5)
    return norm


class Sampling(nn.Module):
    """Sample ``points`` features of ``channels`` in each token's RoI and mix them by weights that the token makes."""

    def __init__(self, width: int, channels: int, points: int, inner: int = 128) -> None:
        super().__init__()
        self.channels, self.outputs = channels, max(points, 32)
        shift, last = nn.Linear(width, 2 * points, bias=False), nn.Linear(inner, channels**2 + points * self.outputs)
        self.offset = nn.Sequential(small_norm(width), shift)
        self.weights = nn.Sequential(small_norm(width), nn.Linear(width, inner), last)
        self.out = nn.Linear(channels * self.outputs, width)
        side = math.isqrt(points)
        even = grid_rois(side, 1 / side)[:, :2] + 0.5 / side if side**2 == points else torch.rand(points, 2)
        self.points = nn.Parameter(even - 0.5)
        with torch.no_grad():
            shift.weight.zero_()
            last.weight.zero_()
            nn.init.xavier_uniform_(last.bias[: channels**2].view(channels, channels))
            nn.init.xavier_uniform_(last.bias[channels**2 :].view(points, self.outputs))

    def forward(self, tokens: Tensor, roi: Tensor, features: Tensor) -> Tensor:
        """Return what is added to ``tokens [B, n, width]`` with ``roi [B, n, 4]``, from ``features [B, c, h, w]``."""
        offsets = self.points + self.offset(tokens).unflatten(-1, self.points.shape)
        read = sample(features, points_in(roi, offsets))
        by_channel, by_point = self.weights(tokens).tensor_split((self.channels**2,), -1)
        by_channel = by_channel.unflatten(-1, (self.channels, self.channels))
        by_point = by_point.unflatten(-1, (self.outputs, len(self.points)))
        return self.out(gelu(by_point @ (read @ by_channel)).flatten(-2))


class Stem(nn.Module):
    """The authors' early convolution: a quarter of the resolution, normalised over ``channels``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 7, 2, 3)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, channels, rows / 4, columns / 4]`` of ``images [B, 3, rows, columns]``."""
        features = max_pool2d(self.conv(images).relu(), 3, 2, 1)
        return layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


class Encoding(nn.Module):
    """Tell a token where its RoI is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.turn = width, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, roi: Tensor) -> Tensor:
        """Return ``[B, n, width]`` for ``roi [B, n, 4]``."""
        return self.turn(roi_encoding(roi, self.width))


class Focus(nn.Module):
    """The shared focusing block: sample, say where, attend, MLP, move the RoI, ``repeats`` times over."""

    def __init__(self, width: int, heads: int, channels: int, points: int, repeats: int, inner: int = 128) -> None:
        super().__init__()
        self.stage = nn.Embedding(repeats, width)
        self.sampling, self.encoding = Sampling(width, channels, points, inner), Encoding(width)
        self.block = Block(width, heads, 4 * width, eps=1e-5)
        change = nn.Linear(width, 4, bias=False)
        nn.init.zeros_(change.weight)
        self.move = nn.Sequential(small_norm(width), nn.Linear(width, width), nn.GELU(), change)

    def forward(self, tokens: Tensor, roi: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens and their RoIs after all turns."""
        for stage in self.stage.weight:
            tokens = tokens + stage
            tokens = tokens + self.sampling(tokens, roi, features)
            tokens = self.block(tokens + self.encoding(roi))
            roi = moved(roi, self.move(tokens))
        return tokens, roi


class SparseFormer(nn.Module):
    """A ViT of few tokens: ``stem`` and ``focus`` (new), then ``blocks`` and ``norm`` of the ViT behind the tokens.

    ``start [d]`` is the ViT's class token; ``side * side`` is the number of latent tokens. The first ``tuned`` of the
    blocks are trained, the others frozen.
    """

    def __init__(
        self, stem: nn.Module, focus: Focus, blocks: Iterable[Block], norm: nn.Module, start: Tensor, side: int = 7,
        tuned: int = 0, inner: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem, self.focus, self.blocks, self.norm = stem, focus, nn.ModuleList(blocks), norm.requires_grad_(False)
        if not 0 <= tuned <= len(self.blocks):
            raise BadInput(f"tuned={tuned} of {len(self.blocks)} blocks.")
        for place, block in enumerate(self.blocks):
            block.requires_grad_(place < tuned)
        first, last = focus.stage.weight.shape[1], start.shape[-1]
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(first)))
        self.roi = nn.Parameter(grid_rois(side))
        self.widen = nn.Linear(first, last) if first != last else nn.Identity()
        points = len(focus.sampling.points)
        self.sampling, self.encoding = Sampling(last, focus.sampling.channels, points, inner), Encoding(last)
        self.start = nn.Parameter(start.detach().reshape(last).clone())

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent tokens ``[B, n, d]`` of ``images`` before the ViT's blocks, and their RoIs."""
        features = self.stem(images)
        roi = self.roi.expand(len(images), -1, -1)
        tokens, roi = self.focus(self.token.expand(*roi.shape[:2], -1), roi, features)
        tokens = self.widen(tokens)
        tokens = tokens + self.sampling(tokens, roi, features)
        return tokens + self.encoding(roi), roi

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, 1 + n, d]`` after the ViT's norm, the class token first."""
        tokens, _ = self.tokens(images)
        hidden = torch.cat([self.start.expand(len(tokens), 1, -1), tokens], 1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


def likeness(hidden: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss of bootstrapping: 1 - cosine of the class tokens of ``hidden`` and ``wanted [B, ., d]``."""
    return (1 - cosine_similarity(hidden[:, 0], wanted[:, 0].detach(), -1)).mean()
