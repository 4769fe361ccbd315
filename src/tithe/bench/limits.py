"""How long a context may grow before what it is asked for is no longer found: the effective context limit.

Needle threading: Roberts, Han, Albanie 2024, arXiv:2411.05000. Scores by length and depth (or number of needles) are
smoothed, and the limit is where their contour at a threshold of 75 % crosses, in characters, since tokens of different
tokenizers are not alike. The authors' code is not published; the smoothing and the interpolation here give the contour
of their figure to eight digits from the scores of their figure (project page @ 665f01e).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tithe.errors import BadInput

THRESHOLD = 0.75
SMOOTHING = 1.5
_REACH = 4.0

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Limit:
    """The effective context limit of one line of results.

    ``tokens`` and ``characters`` (None where rows do not tell them) up to which the score stays at or above
    ``threshold``; ``reached``: it fell below within the lengths measured, else the limit is the longest of them.
    """

    tokens: float
    characters: float | None
    threshold: float
    reached: bool


def smoothed(scores: ArrayLike, smoothing: float = SMOOTHING) -> Grid:
    """Return scores ``[lengths, depths]`` under a Gaussian of ``smoothing`` steps along both, mirrored at the edges.

    Weights beyond four deviations are left out, as in SciPy's ``gaussian_filter``; 0 smooths nothing.
    """
    grid = np.asarray(scores, np.float64)
    if smoothing <= 0:
        return grid
    radius = int(_REACH * smoothing + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / smoothing) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(grid, [(radius, radius) if one == axis else (0, 0) for one in (0, 1)], "symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis)
        grid = windows @ weights
    return grid


def contour(
    lengths: Sequence[float], scores: ArrayLike, threshold: float = THRESHOLD, smoothing: float = SMOOTHING
) -> Grid:
    """Return for each depth the length at which its score first falls below ``threshold``, ``[depths]``.

    Between two lengths scores run straight. The longest length where one never falls below, 0 where it starts there.

    Args:
        lengths: Rising, in any unit. scores: ``[lengths, depths]``, 0 to 1.

    Raises:
        BadInput: Lengths that do not rise, scores of another shape, or a threshold outside 0 to 1.
    """
    places, grid = np.asarray(lengths, np.float64), np.asarray(scores, np.float64)
    _check(places, grid, threshold)
    return np.array([_crossing(places, column, threshold) for column in smoothed(grid, smoothing).T])


def effective_limit(
    lengths: Sequence[float],
    depths: Sequence[float],
    scores: ArrayLike,
    threshold: float = THRESHOLD,
    *,
    smoothing: float = SMOOTHING,
    at: float | None = None,
) -> float:
    """Return the length up to which scores stay at or above ``threshold``, at every depth or at one.

    Args:
        lengths: Rising, in any unit; the authors' are characters.
        depths: Rising: depths, numbers of needles or steps.
        scores: ``[lengths, depths]``, 0 to 1.
        at: The one depth or number that counts, between columns by straight lines; None: the worst of them, along
            straight lines between columns as well, whose lowest point is always at one of them.

    Raises:
        BadInput: As `contour`, or ``at`` outside ``depths``.
    """
    columns = np.asarray(depths, np.float64)
    places, grid = np.asarray(lengths, np.float64), np.asarray(scores, np.float64)
    _check(places, grid, threshold)
    if columns.shape != grid.shape[1:] or (np.diff(columns) <= 0).any():
        raise BadInput(
            f"depths={columns.tolist()}: give {grid.shape[1]} rising numbers, one for each column of scores."
        )
    if at is None:
        return float(contour(lengths, grid, threshold, smoothing).min())
    if not columns[0] <= at <= columns[-1]:
        raise BadInput(f"at={at!r} lies outside depths, {columns[0]:g} to {columns[-1]:g}.")
    column = np.array([np.interp(at, columns, row) for row in smoothed(grid, smoothing)])
    return _crossing(places, column, threshold)


def of_rows(
    rows: Iterable[Mapping[str, Any]], threshold: float = THRESHOLD, *, smoothing: float = 0.0, by_depth: bool = False
) -> dict[tuple[Hashable, ...], Limit]:
    """Return the limit of every model, task, method, budget and way to ask in rows of a benchmark at several lengths.

    Scores are the qualities, or ``by_depth`` those at every depth, of which the worst counts: with few cases at each,
    that is the unluckiest. By default they are not smoothed: over two or three lengths the authors' smoothing would
    leave little but their mean.

    Raises:
        BadInput: A line of rows with fewer than two lengths, one length twice, or not all with the same depths.
    """
    lines: dict[tuple[Hashable, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("model", "task", "method", "keep", "question"))
        lines.setdefault(key, []).append(row)
    return {key: _limit(key, line, threshold, smoothing, by_depth) for key, line in lines.items()}


def _limit(
    key: tuple[Hashable, ...], line: list[Mapping[str, Any]], threshold: float, smoothing: float, by_depth: bool
) -> Limit:
    named = " ".join(str(part) for part in key if part is not None)
    if any(row.get("length") is None for row in line) or len({row["length"] for row in line}) < max(2, len(line)):
        raise BadInput(f"{named}: an effective limit needs rows at two lengths at least, one row each.")
    line = sorted(line, key=lambda row: float(row["length"]))
    scores = [[float(row["quality"])] for row in line]
    if by_depth:
        depths = [[depth for depth, *_ in row.get("by_depth") or ()] for row in line]
        if not depths[0] or any(one != depths[0] for one in depths):
            raise BadInput(f"{named}: by_depth needs scores at the same depths for all lengths; ask more cases.")
        scores = [[float(score) for _, score, *_ in row["by_depth"]] for row in line]
    tokens = [float(row["length"]) for row in line]
    limit = float(contour(tokens, scores, threshold, smoothing).min())
    told = [row.get("characters") for row in line]
    characters = None
    if all(one is not None for one in told):
        # A context of no tokens has no characters: below the shortest length both grow alike.
        characters = float(np.interp(limit, [0.0, *tokens], [0.0, *map(float, told)]))  # type: ignore[arg-type]
    return Limit(limit, characters, threshold, bool((smoothed(scores, smoothing) < threshold).any()))


def _crossing(lengths: Grid, column: Grid, threshold: float) -> float:
    below = np.flatnonzero(column < threshold)
    if not len(below):
        return float(lengths[-1])
    first = int(below[0])
    if first == 0:
        return 0.0
    above, under = column[first - 1], column[first]
    share = (above - threshold) / (above - under)
    return float(lengths[first - 1] + share * (lengths[first] - lengths[first - 1]))


def _check(lengths: Grid, scores: Grid, threshold: float) -> None:
    if lengths.ndim != 1 or not len(lengths) or (np.diff(lengths) <= 0).any():
        raise BadInput(f"lengths={lengths.tolist()}: give one or more rising numbers.")
    if scores.ndim != 2 or scores.shape[0] != len(lengths) or not scores.shape[1] or not np.isfinite(scores).all():
        raise BadInput(f"scores of shape {list(scores.shape)}: give one finite score for each length and depth.")
    if not 0 < threshold <= 1:
        raise BadInput(f"threshold={threshold!r}: give a score in (0, 1].")
