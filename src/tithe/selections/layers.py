"""Share a budget out over layers: from the even share of each row to what one layer may keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pyramid(count: Tensor, seen: Tensor, window: int, layer: int, layers: int, beta: int) -> Tensor:
    """Return ``[B]``: the tokens that ``layer`` keeps of a ``count [B]`` a layer, more below than above.

    Beside the ``window``, the share of layers falls evenly from the lowest to a ``beta``-th of the even share. It is
    even where a row has ``seen [B]`` fewer than twice that share. Steps are whole tokens, rounded down, so all layers
    together keep somewhat more than ``layers * count``. (PyramidKV, arXiv:2406.02069, as in its authors' code.)
    """
    even = count - window
    least = even // beta
    most = torch.minimum(2 * even - least, seen - window)
    least = 2 * even - most
    step = (most - least) // max(1, layers - 1)
    tapered = most - layer * step + window
    return torch.where(seen < 2 * even, count, tapered)


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
