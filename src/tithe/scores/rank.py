"""Importance that flows along attention: a token matters to which tokens that matter attend."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tithe.scores.attention import at_columns
from tithe.seams.evidence import LayerEvidence


def flowing_rank(layer: LayerEvidence, wanted: Tensor, temperature: float, steps: int) -> Tensor:
    """Return ``[B, 1, m]`` at the columns ``wanted [B, 1, m]``: PageRank over the attention of a layer.

    Every query starts with the same share; in each of ``steps`` steps a token hands what it has to those it attends to,
    by the softmax of the layer's logits over ``temperature``. Heads are joined by the root of the mean square. The
    rows of attention are made anew in every step, a block at a time. (AIM, arXiv:2412.03248.)
    """
    assert layer.query_cols is not None and layer.live is not None
    cap = None if layer.softcap is None else layer.softcap / temperature
    sharp = replace(layer, scaling=layer.scaling / temperature, softcap=cap)
    rows, heads, held = layer.keys.shape[:3]
    groups = layer.observed.shape[1] // heads
    live = layer.live.float()
    given = (live / live.sum(-1, keepdim=True))[:, None, None].expand(-1, heads, groups, -1)
    share = torch.zeros(rows, heads, groups, held, device=given.device)
    for step in range(steps):
        if step:
            columns = at_columns(share.flatten(1, 2), _repeated(layer.view.cols, groups), layer.query_cols[:, None])
            given = columns.unflatten(1, (heads, groups)) * live[:, None, None]
        share, start = torch.zeros_like(share), 0
        for block in sharp.blocks():
            stop = start + block.shape[3]
            share += torch.einsum("bhgr,bhgrn->bhgn", given[..., start:stop], block)
            start = stop
    joined = share.flatten(1, 2).pow(2)
    found = at_columns(joined, _repeated(layer.view.cols, groups), wanted)
    return found.mean(1, keepdim=True).sqrt()


def _repeated(cols: Tensor, groups: int) -> Tensor:
    return cols if cols.shape[1] == 1 else cols.repeat_interleave(groups, 1)
