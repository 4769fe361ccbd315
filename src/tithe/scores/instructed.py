"""What image tokens receive, inside the language model, from the words behind them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tithe.scores.attention import at_columns
from tithe.seams.evidence import LayerEvidence
from tithe.seams.transitions import Passage
from tithe.types import DEAD, IMAGE, TEXT, Tokens

ALL = 2**30  # the window of a need for all rows of a prompt


def from_last(part: LayerEvidence, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: attention from the last token of the prompt, mean over the heads."""
    return at_columns(part.probs(-1).mean((1, 2, 3))[:, None], part.view.cols, tokens.cols)


def from_rows(part: LayerEvidence, rows: Tensor, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: attention from the observed queries ``rows [B, w]``, mean over them and the heads."""
    total = torch.zeros(rows.shape[0], part.keys.shape[2], device=rows.device)
    start, behind = _from_first(part, rows)
    for block in behind.blocks():
        stop = start + block.shape[3]
        total += torch.einsum("brn,br->bn", block.mean((1, 2)), rows[:, start:stop].float())
        start = stop
    mean = total / rows.sum(-1, keepdim=True).clamp(min=1)
    return at_columns(mean[:, None], part.view.cols, tokens.cols)


def each_row(part: LayerEvidence, rows: Tensor, tokens: Tokens) -> Tensor:
    """Return ``[B, r, n]``: attention from each of the queries ``rows [B, w]`` by itself, mean over the heads.

    ``r`` counts the queries from the first of ``rows`` on; those that are none of ``rows`` have zeros.
    """
    start, behind = _from_first(part, rows)
    probs = torch.cat([block.mean((1, 2)) for block in behind.blocks()], 1) * rows[:, start:, None]
    return at_columns(probs, part.view.cols, tokens.cols)


def instruction(part: LayerEvidence, tokens: Tokens) -> Tensor:
    """Return ``[B, w]``: which observed queries are of text behind the last image; the last one where there is none."""
    assert part.query_cols is not None and part.live is not None
    image = torch.where(tokens.among(IMAGE)[:, 0], tokens.cols[:, 0], -1).amax(-1)
    return _or_last(part.live & (part.query_cols > image[:, None]), part)


def raters(embedded: Passage, part: LayerEvidence) -> Tensor:
    """Return ``[B, w]``: which observed queries are of words that are more like the image than words on average.

    A word behind the last image is as like it as the share that it takes, on the mean over image tokens, of each one's
    softmax over the words; ``embedded`` is what entered the first layer. (SparseVLM, arXiv:2410.04417, as in its code.)
    """
    assert embedded.entering is not None and embedded.kind is not None and part.query_cols is not None
    image = embedded.valid & (embedded.kind == IMAGE)
    last = torch.where(image, embedded.cols, -1).amax(-1, keepdim=True)
    word = embedded.valid & (embedded.kind == TEXT) & (embedded.cols > last)
    likeness = torch.zeros(word.shape, device=word.device)
    for row, (states, seen, said) in enumerate(zip(embedded.entering, image, word, strict=True)):
        if bool(seen.any()) and bool(said.any()):
            share = (states[seen] @ states[said].T).float().softmax(-1)
            likeness[row, said] = share.mean(0)
    mean = likeness.sum(-1, keepdim=True) / word.sum(-1, keepdim=True).clamp(min=1)
    chosen = (word & (likeness > mean)).float()[:, None]
    known = torch.where(embedded.valid, embedded.cols, DEAD)[:, None]
    return _or_last(at_columns(chosen, known, part.query_cols[:, None])[:, 0] > 0, part)


def _or_last(rows: Tensor, part: LayerEvidence) -> Tensor:
    """Return ``rows [B, w]``, or the last query alone in a row of the batch where there are none."""
    last = torch.zeros_like(rows)
    last[:, -1] = True
    return torch.where(rows.any(-1, keepdim=True), rows, last)


def _from_first(part: LayerEvidence, rows: Tensor) -> tuple[int, LayerEvidence]:
    """Return the first query that any row of the batch asks for, and the evidence of the queries from there on."""
    assert part.queries is not None and part.query_cols is not None and part.live is not None
    start = int(rows.any(0).int().argmax())
    shown = part.shown[:, :, start:] if part.shown is not None else None
    behind = replace(
        part,
        queries=part.queries[:, :, start:],
        query_cols=part.query_cols[:, start:],
        live=part.live[:, start:],
        shown=shown,
        _memo={},
    )
    return start, behind
