"""Examples and the question of a prompt with several images: what image tokens have to do with their text and context.

A sample is an image and the text behind it, up to the next image; the last one is the question, those before it are
examples. (CATP, arXiv:2508.07871.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tithe.errors import Refused
from tithe.scores.attention import at_columns
from tithe.scores.features import connected
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.types import IMAGE, Tokens


def last_image(tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: the image tokens behind which no text comes before another image token."""
    image = tokens.among(IMAGE)
    group = (tokens.valid & ~image).cumsum(-1)
    return image & (group == torch.where(image, group, -1).amax(-1, keepdim=True))


def samples(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return ``[B, 1, n]`` twice: all tokens of the examples, from the first image on, and all of the question."""
    asked = last_image(tokens).cumsum(-1) > 0
    begun = tokens.among(IMAGE).cumsum(-1) > 0
    return tokens.valid & begun & ~asked, tokens.valid & asked


def paired(evidence: Evidence, tokens: Tokens) -> Tensor:
    """Return ``[1, 1, n]`` in [0, 1]: likeness of each image token to the mean embedding of the text behind its image.

    The cosine, rescaled. An image without text behind it is compared with all text of the prompt.
    """
    prompt = evidence.prompt
    if prompt is None:
        raise Refused("The text that goes with an image is read after the encoder only.")
    cols = prompt.cols
    mine = cols > prompt.places.max()
    if bool(mine.any()):
        start = cols - torch.arange(len(cols), device=cols.device)
        mine = mine & (start == start[mine][0])
    else:
        mine = torch.ones_like(mine)
    text = prompt.embeds[0, mine].float().mean(0)
    return (1 + cosine_similarity(connected(evidence, tokens).float(), text, dim=-1))[:, None] / 2


def growing(hidden: Tensor, before: LayerEvidence, now: LayerEvidence, tokens: Tokens, relevance: float) -> Tensor:
    """Return ``[B, 1, n]``: how much more the last token attends to each one, and its likeness to the question.

    What ``now`` adds to the attention of the layer ``before``, mean over the heads, 0 where it is less; and
    ``relevance`` times the cosine of the states ``hidden [B, n, d]`` with their mean over the question.
    """
    received = [
        at_columns(part.probs(-1).mean((1, 2, 3))[:, None], part.view.cols, tokens.cols) for part in (before, now)
    ]
    return (received[1] - received[0]).clamp(min=0) + relevance * _like_mean(hidden, samples(tokens)[1])


def in_context(hidden: Tensor, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: cosine of the states ``hidden [B, n, d]`` with their mean over the examples.

    Over the text of the question in a row that has no examples.
    """
    examples, question = samples(tokens)
    text = question & ~tokens.among(IMAGE)
    return _like_mean(hidden, torch.where(examples.any(-1, keepdim=True), examples, text))


def _like_mean(hidden: Tensor, among: Tensor) -> Tensor:
    share = among.float() / among.sum(-1, keepdim=True).clamp(min=1)
    return cosine_similarity(hidden.float(), share @ hidden.float(), dim=-1)[:, None]
