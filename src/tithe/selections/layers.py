"""Share a budget out over layers: from the even share of each row to what one layer may keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pyramid(count: Tensor, seen: Tensor, window: int, layer: int, layers: int, beta: int) -> Tensor:
    """Return ``[B]``: the tokens that ``layer`` keeps of a ``count [B]`` a layer, more below than above.

    Beside the ``window``, the share of layers falls evenly from the lowest to a ``beta``-th of the even share. It is
    even where a row has ``seen [B]`` fewer than twice that share, or no more than the ``window`` to keep. Steps are
    whole tokens, rounded down, so all layers together keep somewhat more than ``layers * count``. (PyramidKV,
    arXiv:2406.02069, as in its authors' code.)
    """
    even = count - window
    least = even // beta
    most = torch.minimum(2 * even - least, seen - window)
    least = 2 * even - most
    step = (most - least) // max(1, layers - 1)
    tapered = most - layer * step + window
    return torch.where((seen < 2 * even) | (even <= 0), count, tapered)


def by_importance(importance: Sequence[float], total: int, low: int, high: int) -> list[int]:
    """Return the tokens of each layer: ``low`` and a share of the rest by ``importance`` (sums to 1), at most ``high``.

    Rounding and clipping are made good a token at a time, most important layers first, or last where too many were
    given, so that the sum is ``total`` wherever the bounds allow it. (CompressKV, arXiv:2508.02401, as in its code.)
    """
    layers = len(importance)
    rest = total - low * layers
    given = [min(high, max(low, low + round(share * rest))) for share in importance]
    order = sorted(range(layers), key=lambda layer: importance[layer], reverse=True)
    missing = total - sum(given)
    while missing:
        before = missing
        for layer in order if missing > 0 else reversed(order):
            more = 1 if missing > 0 else -1
            if missing and low <= given[layer] + more <= high:
                given[layer] += more
                missing -= more
        if missing == before:
            break
    return given


def by_share(count: Tensor, seen: Tensor, least: int, weights: Tensor) -> Tensor:
    """Return ``[B, L]``: ``L * count [B]`` tokens of a row shared out by ``weights [B, L]`` (mean 1 in each row).

    No layer gets fewer than ``least`` (at least 1) or more than the row has ``seen [B]``; what these bounds take or
    leave goes to the other layers by their weights. Whole tokens go to the largest remainders, lower layers first.
    """
    layers = weights.shape[1]
    most = seen.double()[:, None].expand_as(weights)
    low = most.clamp(max=max(1, least))
    total = (count * layers).double()[:, None].clamp(max=most.sum(1, keepdim=True), min=low.sum(1, keepdim=True))
    given, high = most.clone(), weights.double().clamp(min=1e-9)
    under, over = torch.zeros_like(total), total / high.amin(1, keepdim=True) + 1
    for _ in range(64):
        middle = (under + over) / 2
        given = (high * middle).maximum(low).minimum(most)
        short = given.sum(1, keepdim=True) < total
        under, over = torch.where(short, middle, under), torch.where(short, over, middle)
    whole = (given + 1e-9).floor()
    left = (total - whole.sum(1, keepdim=True)).round()
    room = whole < most
    order = torch.argsort(torch.where(room, given - whole, -1.0), dim=1, descending=True, stable=True).argsort(1)
    return (whole + (order < left)).long()


def uniform(layers: int) -> list[float]:
    """Return equal weights."""
    return [1.0] * layers


def tapered(layers: int, beta: int = 20) -> list[float]:
    """Return weights that fall evenly from the lowest layer to a ``beta``-th at the highest, mean 1 (PyramidKV)."""
    least = 1 / beta
    return (
        [2 - least - layer * (2 - 2 * least) / max(1, layers - 1) for layer in range(layers)] if layers > 1 else [1.0]
    )
