"""Which frames of a video stand still together, and where."""

from __future__ import annotations

import torch
from torch import Tensor

Segment = tuple[int, int]


def stills(features: Tensor, frames: Tensor, tau: float) -> Tensor:
    """Return ``[F - 1, n]`` bool: whether a place looks in the next frame as in this, by a cosine above ``tau``.

    ``features [N, d]`` are read a few tokens at a time, so that two frames are never copied whole.

    Args:
        features: the tokens presented; frames: ``[F, n]``, their places frame by frame.
    """
    size = frames.shape[1]
    still = torch.zeros(max(len(frames) - 1, 0), size, dtype=torch.bool, device=frames.device)
    step = max(1, size * size // (2 * features.shape[1]))
    for number in range(len(still)):
        for start in range(0, size, step):
            one, two = (features[frames[n, start : start + step]] for n in (number, number + 1))
            dots = torch.linalg.vecdot(one, two)
            norms = one.norm(dim=-1).clamp(min=1e-8) * two.norm(dim=-1).clamp(min=1e-8)
            still[number, start : start + step] = dots > tau * norms
    return still


def segments(still: Tensor, longest: int) -> tuple[list[Segment], int]:
    """Cut a video where the most tokens can be saved, by dynamic programming over all cuts.

    A segment of ``w`` frames saves ``w - 1`` tokens for every place that stands still all through it. Of two cuts that
    save as much the one with the shorter last segment is taken.

    Args:
        still: ``[F - 1, n]`` as from ``stills``; longest: the most frames in a segment.

    Returns:
        First and last frame of each segment, in order, and the tokens saved.
    """
    frames = len(still) + 1
    saved = _saved(still, longest)
    best, first = [0] * frames, list(range(frames))
    for last in range(1, frames):
        best[last] = best[last - 1]
        for size in range(2, min(last + 1, longest) + 1):
            start = last - size + 1
            gain = (best[start - 1] if start else 0) + saved[start][last - start]
            if gain > best[last]:
                best[last], first[last] = gain, start
    found, last = [], frames - 1
    while last >= 0:
        found.append((first[last], last))
        last = first[last] - 1
    return found[::-1], best[-1]


def _saved(still: Tensor, longest: int) -> list[list[int]]:
    """Return what each segment saves, by first frame and further frames; a row of places is all that is held."""
    found = []
    for start in range(len(still) + 1):
        row, standing = [0], torch.ones(still.shape[1], dtype=torch.bool, device=still.device)
        for more, one in enumerate(still[start : start + longest - 1], 1):
            standing = standing & one
            count = int(standing.sum())
            row.append(count * more)
            if not count:
                row += [0] * (min(len(still) - start, longest - 1) - more)
                break
        found.append(row)
    return found
