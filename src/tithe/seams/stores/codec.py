"""Asymmetric min-max quantisation into packed rows, and sums over such rows without unpacking them into memory.

A row is one group of g numbers: ``[codes | scale | minimum]`` as bytes, the codes packed with the lowest bits first,
scale and minimum in half precision: ``g * bits / 8 + 4`` bytes. This is also the row of PyTorch's quantised embedding
bags, so a weighted sum of rows (scores are one, outputs are one) runs as a bag on the CPU, unpacked in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from tithe.errors import Refused

PARAMETERS = 4  # bytes of scale and minimum
ROWS = 1 << 17  # rows of one bag call: what its index, shared by all calls, spans
BUFFER = 1 << 18  # numbers unpacked at a time: a megabyte, so that they are read again from the second-level cache
BAGS = 3  # up to so many weightings of the same rows, a bag each beats unpacking once and multiplying


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes ``[..., g]`` (uint8), scale and minimum ``[..., 1]`` (float32) of groups ``x [..., g]``."""
    x = x.float()
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    codes = ((x - low) / scale).nan_to_num_(0.0).clamp_(0, 2**bits - 1).round_()
    return codes.to(torch.uint8), scale, low


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return ``codes [..., g]`` as bytes ``[..., g * bits / 8]``, the first code in the lowest bits."""
    several = codes.unflatten(-1, (-1, 8 // bits))
    packed = several[..., 0].clone()
    for place in range(1, 8 // bits):
        packed |= several[..., place] << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes ``[..., g]`` of ``pack``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def encode(x: Tensor, bits: int) -> Tensor:
    """Return the rows ``[..., bytes]`` of groups ``x [..., g]``; g is a multiple of ``8 // bits``.

    Raises:
        Refused: a minimum or a range beyond half precision (65504), or not finite.
    """
    codes, scale, low = quantise(x.contiguous(), bits)
    parameters = torch.cat([scale, low], -1).half()
    if not bool(torch.isfinite(parameters).all()):
        raise Refused("Keys or values cannot be quantised: they are not finite in half precision (beyond 65504, or NaN).")
    return torch.cat([pack(codes, bits), parameters.view(torch.uint8)], -1)


def decode(rows: Tensor, bits: int) -> Tensor:
    """Return the numbers ``[..., g]`` (float32) of contiguous ``rows [..., bytes]``."""
    bag = _bag(bits) if rows.device.type == "cpu" else None
    if bag is None:
        return decode_plain(rows, bits)
    flat = rows.view(-1, rows.shape[-1])
    parts = [bag(part, _index()[: len(part)], _index()[: len(part) + 1]) for part in flat.split(ROWS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*rows.shape[:-1], -1)


def decode_plain(rows: Tensor, bits: int) -> Tensor:
    """Return what ``decode`` does, by shifts and masks, on any device."""
    codes = unpack(rows[..., :-PARAMETERS], bits).float()
    scale, low = rows[..., -PARAMETERS:].contiguous().view(torch.float16).float().split(1, -1)
    return torch.addcmul(low, codes, scale)


def weigh(rows: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Return ``[N, M, g]``: for each of N blocks of m rows, M weighted sums of its rows.

    Args:
        rows: contiguous ``[N, m, bytes]``.
        weights: float32 ``[N, M, m]``.
    """
    bag = _bag(bits) if rows.device.type == "cpu" else None
    blocks, several, m = weights.shape
    if bag is None or several > BAGS:
        size = max(1, BUFFER // (m * (rows.shape[2] - PARAMETERS) * 8 // bits))
        parts = [torch.bmm(w, decode(r, bits)) for r, w in zip(rows.split(size), weights.split(size), strict=True)]
        return torch.cat(parts) if parts else weights.new_zeros(0, several, (rows.shape[2] - PARAMETERS) * 8 // bits)
    out = weights.new_empty(several, blocks, (rows.shape[2] - PARAMETERS) * 8 // bits)
    size = max(1, ROWS // m)
    for start in range(0, blocks, size):
        part = rows[start : start + size]
        flat, index = part.view(-1, part.shape[2]), _index()[: part.shape[0] * m]
        ends = torch.arange(0, part.shape[0] * m + 1, m, dtype=torch.int32)
        for one in range(several):
            out[one, start : start + size] = bag(flat, index, ends, weights[start : start + size, one].reshape(-1))
    return out.transpose(0, 1)


@cache
def _index() -> Tensor:
    return torch.arange(ROWS + 1, dtype=torch.int32)


@cache
def _bag(bits: int) -> Callable[..., Tensor] | None:
    """Return sums of the rows of each bag (``rows, index, ends, weights``), or None where PyTorch has no such kernel."""
    name = f"embedding_bag_{bits}bit_rowwise_offsets"
    if not hasattr(torch.ops.quantized, name):
        return None
    kernel = getattr(torch.ops.quantized, name)

    def bag(rows: Tensor, index: Tensor, ends: Tensor, weights: Tensor | None = None) -> Tensor:
        return kernel(rows, index, ends, False, 0, False, weights, None, True)

    return bag
