"""Small networks, trained beside a frozen model, that say which image tokens it can do without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tithe.scores.instructed import from_rows
from tithe.seams.evidence import LayerEvidence
from tithe.types import IMAGE, Tokens

Weights = dict[str, Tensor]
LEAST = 1e-6  # attention below this counts as this, before its logarithm is taken
READY = 2.0  # the bias of a pruner that has not been trained: most tokens stay


def mixed(states: Tensor, weight: Tensor, heads: int, valid: Tensor) -> Tensor:
    """Return ``[B, n, c]``: self-attention over the ``valid [B, n]`` of ``states [B, n, c]``, each seeing all.

    ``weight [3c, c]`` projects queries, keys and values.
    """
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in F.linear(states, weight).chunk(3, -1)
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])
    return out.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Contextual:
    """A pruning module that sees image and text tokens together. (CoViPAL, arXiv:2508.17243.)

    ``weights`` by name: ``down.weight [c, d]``, ``down.bias``, ``kind [2, c]`` (text, image), ``qkv [3c, c]``,
    ``out [c, c]``, ``mlp.0.weight [c, c]``, ``mlp.0.bias``, ``mlp.2.weight [1, c]``, ``mlp.2.bias``.
    """

    weights: Weights
    heads: int = 4

    def __call__(self, states: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Return a score ``[B, n]`` for every token of ``states [B, n, d]``; ``image, valid [B, n]`` say what is one.

        Norms are taken away first: they grow from layer to layer and say little.
        """
        w = self.weights
        x = F.linear(F.layer_norm(states, states.shape[-1:]), w["down.weight"], w["down.bias"])
        x = x + w["kind"][image.long()]
        x = x + F.linear(mixed(x, w["qkv"], self.heads, valid), w["out"])
        x = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), w["mlp.0.weight"], w["mlp.0.bias"]))
        return F.linear(x, w["mlp.2.weight"], w["mlp.2.bias"])[..., 0]


@dataclass(frozen=True)
class CrossAttention:
    """A pruner of learned queries, put to the image by what is asked, on top of the model's own attention. (RCP.)

    ``weights`` by name: ``queries [q, c]``, ``question.weight [c, d]``, ``question.bias``, ``vision.weight [c, d]``,
    ``vision.bias``, ``cross.weight [2c, c]`` (queries, keys), ``cross.bias``, ``scorer.0.weight [c, c]``,
    ``scorer.0.bias``, ``scorer.1.weight [c]``, ``scorer.1.bias``, ``scorer.3.weight [1, c]``, ``scorer.3.bias``,
    ``aggregate.weight [1, q]``, ``aggregate.bias``, ``bias``.
    """

    weights: Weights
    heads: int = 4

    def __call__(self, states: Tensor, image: Tensor, question: Tensor, received: Tensor) -> Tensor:
        """Return logits ``[B, n]`` of keeping a token: those above 0 stay.

        Args:
            states: ``[B, n, d]`` as they enter the layer.
            image: ``[B, n]``, the image tokens there; those dropped before take no part.
            question: ``[B, n]``, the words of the question.
            received: ``[B, n]``, the attention that the question pays to each token in this layer.
        """
        w = self.weights
        tokens = F.linear(states, w["vision.weight"], w["vision.bias"])
        asked = mean_of(states, question)
        queries = w["queries"] + F.linear(asked, w["question.weight"], w["question.bias"])[:, None]
        ours, theirs = w["cross.weight"].chunk(2)
        shift, other = w["cross.bias"].chunk(2)
        query = F.linear(queries, ours, shift).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = F.linear(tokens, theirs, other).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        hidden = ~image & image.any(-1, keepdim=True)
        attended = logits.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1).mean(1)
        looked = F.linear(attended.transpose(1, 2), w["aggregate.weight"], w["aggregate.bias"])[..., 0]
        hidden_layer = F.linear(tokens, w["scorer.0.weight"], w["scorer.0.bias"])
        hidden_layer = F.layer_norm(hidden_layer, hidden_layer.shape[-1:], w["scorer.1.weight"], w["scorer.1.bias"])
        own = F.linear(F.gelu(hidden_layer), w["scorer.3.weight"], w["scorer.3.bias"])[..., 0]
        return above_mean(received, image) + looked + own + w["bias"]


def paid_at_last(part: LayerEvidence, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: attention from the last tokens of the prompt, as many as it has image tokens.

    The mean over these and the heads, where CoViPAL's labels are the sum: the order is the same.
    """
    assert part.live is not None
    behind = part.live.flip(-1).cumsum(-1).flip(-1)
    return from_rows(part, part.live & (behind <= tokens.among(IMAGE)[:, 0].sum(-1, keepdim=True)), tokens)


def above_mean(received: Tensor, image: Tensor) -> Tensor:
    """Return ``[B, n]``: the logarithm of attention ``received [B, n]``, less its mean over the ``image`` tokens."""
    raw = received.clamp(min=LEAST).log()
    return raw - mean_of(raw[..., None], image)


def mean_of(states: Tensor, chosen: Tensor) -> Tensor:
    """Return ``[B, d]``: the mean of the ``chosen [B, n]`` rows of ``states [B, n, d]``, zeros where there are none."""
    weight = chosen.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
