"""Asymmetric min-max quantisation into packed rows, and sums over such rows without unpacking them into memory.

A row is one group of g numbers: ``[codes | scale | minimum]`` as bytes, the codes packed with the lowest bits first,
scale and minimum in half precision: ``g * bits / 8 + 4`` bytes. This is also the row of PyTorch's quantised embedding
bags, so a weighted sum of rows (scores are one, outputs are one) runs as a bag on the CPU, unpacked in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from tithe.errors import Refused

PARAMETERS = 4  # bytes of scale and minimum
LIMIT = 65504.0  # the largest number of half precision
ROWS = 1 << 17  # rows of one bag call: what its index, shared by all calls, spans
BUFFER = 1 << 18  # numbers unpacked at a time: a megabyte, so that they are read again from the second-level cache
BAGS = 3  # up to so many weightings of the same rows, a bag each beats unpacking once and multiplying


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return whole-numbered codes ``[..., g]``, scale and minimum ``[..., 1]`` of groups ``x [..., g]``, in float32."""
    x = x.float()
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    codes = ((x - low) / scale).nan_to_num_(0.0).clamp_(0, 2**bits - 1).round_()
    return codes, scale, low


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return ``codes [..., g]`` as bytes ``[..., g * bits / 8]``, the first code in the lowest bits."""
    places = 2.0 ** torch.arange(0, 8, bits, device=codes.device)
    return (codes.unflatten(-1, (-1, len(places))) @ places).to(torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes ``[..., g]`` of ``pack`` (uint8)."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> places) & (2**bits - 1)).flatten(-2)


def encode(x: Tensor, bits: int) -> Tensor:
    """Return the rows ``[..., bytes]`` of groups ``x [..., g]``; g is a multiple of ``8 // bits``.

    Raises:
        Refused: a minimum or a range beyond half precision (65504), or not finite.
    """
    codes, scale, low = quantise(x.contiguous(), bits)
    if codes.numel() and not bool(low.abs().maximum(scale).max() <= LIMIT):
        raise Refused(
            f"Keys or values cannot be quantised: they are beyond half precision ({LIMIT:.0f}) or not finite."
        )
    parameters = torch.cat([scale, low], -1).half()
    return torch.cat([pack(codes, bits), parameters.view(torch.uint8)], -1)


def decode(rows: Tensor, bits: int) -> Tensor:
    """Return the numbers ``[..., g]`` (float32) of contiguous ``rows [..., bytes]``."""
    bag = _bag(bits) if rows.device.type == "cpu" else None
    if bag is None:
        return decode_plain(rows, bits)
    flat = rows.view(-1, rows.shape[-1])
    parts = [bag(part, _index()[: len(part) + 1]) for part in flat.split(ROWS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*rows.shape[:-1], -1)


def decode_plain(rows: Tensor, bits: int) -> Tensor:
    """Return what ``decode`` does, by shifts and masks, on any device."""
    codes = unpack(rows[..., :-PARAMETERS], bits).float()
    scale, low = rows[..., -PARAMETERS:].contiguous().view(torch.float16).float().split(1, -1)
    return torch.addcmul(low, codes, scale)


def products(rows: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Return ``[M, N, g]``: for each of N blocks of m rows, M sums of its rows weighted by ``weights [M, N, m]``.

    ``rows [N, m, bytes]`` and ``weights`` (float32) are contiguous.
    """
    several, blocks, m = weights.shape
    out = weights.new_empty(several, blocks, (rows.shape[2] - PARAMETERS) * 8 // bits)
    bag = _bag(bits) if rows.device.type == "cpu" and several <= BAGS else None
    size = max(1, ROWS // m if bag is not None else BUFFER // (m * out.shape[2]))
    for start in range(0, blocks, size):
        part, stop = rows[start : start + size], min(start + size, blocks)
        if bag is None:
            torch.bmm(
                weights[:, start:stop].transpose(0, 1), decode(part, bits), out=out[:, start:stop].transpose(0, 1)
            )
            continue
        ends = _index()[: (stop - start) * m + 1 : m].contiguous()
        for one in range(several):
            out[one, start:stop] = bag(part.view(-1, part.shape[2]), ends, weights[one, start:stop].flatten())
    return out


def totals(rows: Tensor, weights: Tensor, runs: Tensor, bits: int) -> Tensor:
    """Return ``[M, K, g]``: M weighted sums of the rows of each of K runs.

    Args:
        rows: contiguous ``[R, bytes]``.
        weights: contiguous float32 ``[M, R]``.
        runs: ``[K + 1]`` int32, where each run begins and the last ends.
    """
    several, held = weights.shape
    out = weights.new_zeros(several, len(runs) - 1, (rows.shape[1] - PARAMETERS) * 8 // bits)
    bag = _bag(bits) if rows.device.type == "cpu" and several <= BAGS else None
    size = ROWS if bag is not None else BUFFER // out.shape[2]
    for start in range(0, held, size):
        part, weight = rows[start : start + size], weights[:, start : start + size]
        ends = runs.clamp(start, start + len(part)) - start
        if bag is not None:
            for one in range(several):
                out[one] += bag(part, ends, weight[one])
            continue
        unpacked, inside = decode(part, bits), ends.tolist()
        for run, (first, last) in enumerate(pairwise(inside)):
            if first < last:
                out[:, run].addmm_(weight[:, first:last], unpacked[first:last])
    return out


@cache
def _index() -> Tensor:
    return torch.arange(ROWS + 1, dtype=torch.int32)


@cache
def _bag(bits: int) -> Callable[..., Tensor] | None:
    """Return sums of the rows between ``ends``, weighted or not; None where PyTorch lacks the kernel."""
    name = f"embedding_bag_{bits}bit_rowwise_offsets"
    if not hasattr(torch.ops.quantized, name):
        return None
    kernel = getattr(torch.ops.quantized, name)

    def bag(rows: Tensor, ends: Tensor, weights: Tensor | None = None) -> Tensor:
        return kernel(rows, _index()[: len(rows)], ends, False, 0, False, weights, None, True)

    return bag
