"""Which rows no other beats in both quality and cost, and the order in which rows are worth a closer look."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
"""Something to be small in both: (what is missed, what it costs)."""


def dominates(one: Point, other: Point) -> bool:
    """Whether ``one`` is no worse in both, and better in one."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def front(points: Sequence[Point]) -> list[int]:
    """Return the places of the points that none dominates, cheapest first; of equal ones the first."""
    kept: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: (points[at][1], points[at][0], at)):
        if not kept or points[at][0] < points[kept[-1]][0]:
            kept.append(at)
    return kept


def layered(points: Sequence[Point]) -> list[int]:
    """Return all places front after front: what beats all others first, what only that beats next."""
    left, found = list(range(len(points))), []
    while left:
        some = [left[at] for at in front([points[at] for at in left])]
        found += some
        left = [at for at in left if at not in set(some)]
    return found
