"""One streamed pass over attention rows: the output and every reduction from the same probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tithe.types import Reducer, RowBlock

BLOCK = 128


def streamed(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    query_cols: Tensor,
    key_cols: Tensor,
    allowed: Tensor | None,
    live: Tensor | None,
    reducers: Sequence[Reducer],
    softcap: float | None = None,
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Attend and reduce in blocks of rows, in ``O(T x block)`` memory.

    Args:
        query: ``[B, Hq, T, d]``; keys, values: ``[B, Hkv, n, d]``.
        query_cols: ``[B, T]`` original columns; key_cols: ``[B, H or 1, n]``.
        allowed: ``[B, H or 1, T, n]`` bool; None means key slot j is seen by query i iff ``j <= i + n - T``.
        live: ``[B, T]`` bool, the queries that count; None for all.

    Returns:
        The output ``[B, T, Hq, d]`` and the state of each reducer by name.
    """
    rows, query_heads, steps, dim = query.shape
    heads, held = keys.shape[1], keys.shape[2]
    group = query_heads // heads
    shape = (rows, heads, group, steps, held)
    states = {reducer.name: reducer.start(keys, shape) for reducer in reducers}
    out = query.new_empty(rows, heads, group, steps, values.shape[3])
    scaled = (query * scaling).view(rows, heads, group, steps, dim)
    for start in range(0, steps, BLOCK):
        stop = min(start + BLOCK, steps)
        reach = held if allowed is not None else min(held, stop + held - steps)
        folded = scaled[:, :, :, start:stop].reshape(rows, heads, -1, dim)
        logits = (folded @ keys[:, :, :reach].transpose(2, 3)).view(rows, heads, group, stop - start, reach)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, :, None, start:stop], torch.finfo(logits.dtype).min)
        elif steps > 1:
            edge = start + held - steps
            hidden = torch.ones(stop - start, reach - edge, dtype=torch.bool, device=keys.device).triu(1)
            logits[..., edge:].masked_fill_(hidden, torch.finfo(logits.dtype).min)
        probs = logits.softmax(-1, dtype=torch.float32)
        mixed = probs.to(values.dtype).view(rows, heads, -1, reach) @ values[:, :, :reach]
        out[:, :, :, start:stop] = mixed.view(rows, heads, group, stop - start, -1)
        alive = None if live is None else live[:, start:stop]
        if alive is not None:
            probs = probs * alive[:, None, None, :, None]
        block = RowBlock(start, stop, query_cols[:, start:stop], key_cols[..., :reach], alive)
        for reducer in reducers:
            reducer.fold(states[reducer.name], probs, block)
    return out.view(rows, query_heads, steps, -1).transpose(1, 2), states
