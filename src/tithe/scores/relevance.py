"""How much frames and places of a video have to do with what the prompt asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tithe.errors import BadInput
from tithe.scores.features import connected
from tithe.seams.asking import Prompted
from tithe.seams.evidence import Evidence
from tithe.types import Tokens


def frames_and_pairs(evidence: Evidence, tokens: Tokens) -> Tensor:
    """Return ``[1, 2, n]``: likeness to the question of the frame that each token is of, and of its pair in a row.

    Cosines with the mean embedding of the text behind the last picture (of all text where none is there): of the mean
    over the frame, and of the channel-wise greatest of two neighbours in a row (a last one without a neighbour counts
    alone). Newlines score 0.
    """
    text = question(_prompt(evidence)).float()
    features = connected(evidence, tokens)[0].float()
    score = features.new_zeros(1, 2, len(features))
    for part in evidence.parts:
        rows = features[part.places]
        score[0, 0, part.places] = cosine_similarity(text, rows.mean(0), dim=0)
        lines = rows.view(*part.grid, -1) if len(rows) == part.grid[0] * part.grid[1] else rows[None]
        width = lines.shape[1]
        greatest = lines[:, ::2].clone()
        greatest[:, : width // 2] = torch.maximum(greatest[:, : width // 2], lines[:, 1::2])
        like = cosine_similarity(text, greatest, dim=-1).repeat_interleave(2, 1)[:, :width]
        score[0, 1, part.places] = like.flatten()
    return score


def question(prompt: Prompted) -> Tensor:
    """Return ``[d]``: the mean embedding of the text behind the last picture, of all text where none is there."""
    behind = prompt.after if bool(prompt.after.any()) else torch.ones_like(prompt.after)
    return prompt.embeds[0, behind].mean(0)


def asked(evidence: Evidence, tokens: Tokens, query: Sequence[int] | None, answer: int, power: float) -> Tensor:
    """Return ``[1, 1, n]``: how likely the model says ``answer`` when shown a token's frame alone, to the ``power``.

    Relative to the likeliest frame. The model reads the text in front of the first picture, the frame and the ids
    ``query`` (None: the text behind the last picture). Newlines score 0.
    """
    prompt = _prompt(evidence)
    features = connected(evidence, tokens)
    behind = prompt.ids[prompt.after] if query is None else query
    opening = prompt.cols - prompt.cols[:1] == torch.arange(len(prompt.cols), device=prompt.cols.device)
    before = prompt.ids[opening & ~prompt.after]
    logs = []
    for part in evidence.parts:
        logits = prompt.ask(before, features[:, part.places], behind)[0].float()
        if not 0 <= answer < len(logits):
            raise BadInput(f"answer={answer!r} is no token id of this model, which has {len(logits)}.")
        logs.append(logits.log_softmax(-1)[answer])
    chance = (torch.stack(logs) - torch.stack(logs).max()).exp() ** power
    score = torch.zeros(tokens.cols.shape, device=features.device)
    for part, one in zip(evidence.parts, chance, strict=True):
        score[0, 0, part.places] = one
    return score


def _prompt(evidence: Evidence) -> Prompted:
    if evidence.prompt is None:
        raise BadInput("What the prompt asks is known after the encoder only.")
    return evidence.prompt
