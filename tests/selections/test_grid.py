from __future__ import annotations

import pytest

from tithe.selections.grid import blocks, coarse, even_points

GRIDS = [(12, 12), (24, 24), (5, 7), (3, 40), (1, 9), (16, 2)]


@pytest.mark.parametrize("grid", GRIDS)
def test_as_many_points_as_asked(grid: tuple[int, int]) -> None:
    n = grid[0] * grid[1]
    for count in range(1, n + 1):
        points = even_points(count, grid)
        assert len(set(points)) == count and points == sorted(points) and points[0] >= 0 and points[-1] < n


def test_points_are_far_apart() -> None:
    """The nearest two of a quarter of the grid are two apart, where consecutive tokens would be one apart."""
    for count, apart in ((36, 2), (16, 3), (9, 4), (4, 6)):
        points = [divmod(point, 12) for point in even_points(count, (12, 12))]
        nearest = min(max(abs(a - c), abs(b - d)) for a, b in points for c, d in points if (a, b) != (c, d))
        assert nearest == apart


@pytest.mark.parametrize("grid", GRIDS)
def test_the_smaller_grid_is_within_the_budget_and_close_to_it(grid: tuple[int, int]) -> None:
    for count in range(1, grid[0] * grid[1] + 1):
        rows, cols = coarse(count, grid)
        assert 1 <= rows <= grid[0] and 1 <= cols <= grid[1] and rows * cols <= count
        assert rows * cols > count // 2
    assert coarse(grid[0] * grid[1], grid) == grid


@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_cover_the_grid_evenly(grid: tuple[int, int]) -> None:
    for count in range(1, grid[0] * grid[1] + 1, max(1, grid[0] * grid[1] // 12)):
        small = coarse(count, grid)
        cell, middle = blocks(small, grid)
        assert set(cell) == set(range(small[0] * small[1]))
        assert [cell[place] for place in middle] == list(range(small[0] * small[1]))
        for axis in (0, 1):
            parts = [
                [divmod(p, grid[1])[axis] for p, c in enumerate(cell) if divmod(c, small[1])[axis] == one]
                for one in range(small[axis])
            ]
            spans = [max(part) - min(part) + 1 for part in parts]
            assert max(spans) - min(spans) <= 1
