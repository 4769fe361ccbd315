"""STPrivacy. Li et al. 2023, arXiv:2301.03046. Written from the paper; no authors' code was found.

A clip is cut into tubelets, pieces of a few frames and pixels. Two mechanisms keep what is private out of what is
published: ``Sparsifier`` abandons the tubelets that the action does not need, chosen by a small network that learns it
through a Gumbel-softmax, and ``anonymise``, transformer blocks on those that are left, changes them in the embedding
space until a recogniser of the private attribute, trained against it, fails while that of the action succeeds. How many
tubelets are published is set by ``keep`` when the model is used, whatever it was trained with.

Paper-only: the paper's own formulas were not at hand, so nothing checks that these are the same. Where its summary
gives none, those of token sparsification at large are taken: scores of each token and of the mean of all, a
straight-through Gumbel-softmax, a squared distance to the ratio, and the entropy of the adversary's answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, gumbel_softmax, scaled_dot_product_attention

from tithe.errors import BadInput
from tithe.types import Card

CARD = Card(
    slug="stprivacy",
    title="STPrivacy: Spatio-Temporal Privacy-Preserving Action Recognition",
    year=2023,
    arxiv="2301.03046",
    code=None,
    family="vision",
    hosts=(),
    fidelity="paper-only",
    saving="real",
    mechanism="Of a clip only the tubelets that the action needs are published, changed by blocks trained against a "
    "recogniser of what is private.",
)

Size = tuple[int, int, int]


def to_tubelets(clip: Tensor, size: Size) -> Tensor:
    """Cut ``clip [B, c, frames, rows, columns]`` into pieces of ``size``: ``[B, n, c * their pixels]``, frames first.

    Raises:
        BadInput: if ``size`` does not divide the clip.
    """
    if any(whole % part for whole, part in zip(clip.shape[2:], size, strict=True)):
        raise BadInput(f"size={size} does not divide a clip of {tuple(clip.shape[2:])}.")
    t, h, w = size
    cut = clip.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


class MaskedBlock(nn.Module):
    """A pre-norm transformer block in which nobody reads the tokens that are not kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return ``[B, n, width]``; ``kept [B, n]`` is 1 or 0 and has a gradient. A token always sees itself."""
        q, k, v = self.qkv(self.before(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if kept is None:
            mixed = scaled_dot_product_attention(q, k, v)
        else:
            own = torch.eye(kept.shape[1], dtype=kept.dtype, device=kept.device)
            seen = (kept[:, None] + own * (1 - kept[:, None]))[:, None]
            logits = q @ k.mT / q.shape[-1] ** 0.5
            mass = (logits - logits.amax(-1, keepdim=True).detach()).exp() * seen
            mixed = mass / mass.sum(-1, keepdim=True) @ v
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.between(tokens))


class Sparsifier(nn.Module):
    """Say of every tubelet whether the action needs it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.second = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 2))

    def logits(self, tokens: Tensor) -> Tensor:
        """Return ``[B, n, 2]`` for ``tokens [B, n, width]``: of keeping, of abandoning."""
        local, shared = self.first(tokens).chunk(2, -1)
        return self.second(torch.cat([local, shared.mean(1, keepdim=True).expand_as(local)], -1))

    def draw(self, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """Return ``[B, n]`` of 1 (kept) and 0, drawn; its gradient is that of the softmax."""
        return gumbel_softmax(self.logits(tokens), temperature, hard=True)[..., 0]

    def best(self, tokens: Tensor, keep: float) -> Tensor:
        """Return the places ``[B, m]`` of the fraction ``keep`` that the action needs most, ascending."""
        scores = self.logits(tokens).softmax(-1)[..., 0]
        return scores.topk(max(round(keep * scores.shape[1]), 1), 1).indices.sort(1).values


class STPrivacy(nn.Module):
    """Turn a clip into what is published of it: the embeddings of a few anonymised tubelets.

    ``tokens`` is the number of tubelets of a clip, ``pixels`` of one of them (times channels). ``keep`` is the fraction
    published, 1 for all; ``before`` blocks see all tubelets and feed the choice, ``after`` blocks anonymise.
    """

    def __init__(
        self, pixels: int, tokens: int, width: int, heads: int = 4, before: int = 1, after: int = 1, keep: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise BadInput(f"keep={keep}. Possible: above 0, to 1.")
        if width % (2 * heads):
            raise BadInput(f"width={width} must be an even multiple of heads={heads}.")
        self.keep = keep
        self.embed, self.place = nn.Linear(pixels, width), nn.Parameter(0.1 * torch.randn(tokens, width))
        self.look = nn.ModuleList(MaskedBlock(width, heads) for _ in range(before))
        self.sparsifier = Sparsifier(width)
        self.anonymise = nn.ModuleList(MaskedBlock(width, heads) for _ in range(after))

    def choose(self, tokens: Tensor) -> Tensor:
        """Return the places that are published, ``[B, m]``; another rule overrides this."""
        seen = tokens
        for block in self.look:
            seen = block(seen)
        return self.sparsifier.best(seen, self.keep)

    def forward(self, tubelets: Tensor) -> tuple[Tensor, Tensor]:
        """Return published tokens ``[B, m, width]`` and how much of each counts ``[B, m]``.

        In training all are returned, with 0 for those abandoned, so that the choice is learnt; otherwise the fraction
        ``keep``, all with 1. What is published of a tubelet comes from published tubelets alone.
        """
        tokens = self.embed(tubelets) + self.place
        if self.training and self.keep < 1:
            seen = tokens
            for block in self.look:
                seen = block(seen)
            kept = self.sparsifier.draw(seen)
        else:
            if self.keep < 1:
                tokens = tokens.take_along_dim(self.choose(tokens)[..., None], 1)
            kept = tokens.new_ones(tokens.shape[:2])
        for block in self.anonymise:
            tokens = block(tokens, kept)
        return tokens * kept[..., None], kept


class Recogniser(nn.Module):
    """Name what is in published tokens, or attack them: a block, and the mean of the tokens that count."""

    def __init__(self, width: int, classes: int, heads: int = 4) -> None:
        super().__init__()
        self.block, self.norm, self.head = MaskedBlock(width, heads), nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of ``tokens [B, m, width]``, of which ``kept [B, m]`` count."""
        tokens = self.norm(self.block(tokens, kept)) * kept[..., None]
        return self.head(tokens.sum(1) / kept.sum(1, keepdim=True).clamp(min=1))


def ratio_loss(kept: Tensor, keep: float) -> Tensor:
    """Return the squared distance of the share kept in each row of ``kept [B, n]`` from ``keep``, averaged."""
    return (kept.mean(1) - keep).square().mean()


def adversarial_loss(
    published: Tensor,
    kept: Tensor,
    action: Recogniser,
    spy: Recogniser,
    actions: Tensor,
    private: Tensor,
    weight: float,
) -> Tensor:
    """Return the loss that both recognisers fall with and that drives ``published`` to where the spy knows nothing.

    Both learn to name their labels ``[B]``. Towards what was published goes the gradient of the action, and ``weight``
    times that of the spy's certainty, the negative entropy of what it says (0: nothing is anonymised).
    """
    named = cross_entropy(action(published, kept), actions)
    learnt = cross_entropy(spy(published.detach(), kept.detach()), private)
    still = {name: parameter.detach() for name, parameter in spy.named_parameters()}
    said = functional_call(spy, still, (published, kept)).log_softmax(-1)
    return named + learnt + weight * (said.exp() * said).sum(-1).mean()
