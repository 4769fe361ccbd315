from __future__ import annotations

import pytest
import torch

from tithe.budget import Budget
from tithe.selections.grid import Blocks, blocks, coarse, even_points
from tithe.types import Tokens

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


def test_blocks_of_several_parts_stay_within_them() -> None:
    """A thumbnail of 4 x 4, a crop of which the last column was cut off, and a newline token."""
    nan = float("nan")
    origin = [[0, row, col] for row in range(4) for col in range(4)]
    origin += [[1, row, col] for row in range(4) for col in range(3)] + [[nan] * 3]
    cols = torch.arange(29, dtype=torch.int32)[None, None]
    given = Tokens(cols, torch.ones(1, 1, 29, dtype=torch.bool), torch.tensor([29]), origin=torch.tensor(origin))
    chosen = Blocks(Budget(7))(torch.zeros(1, 1, 29), given)
    assert chosen.dest is not None
    keep, dest = chosen.keep[0, 0], chosen.dest[0, 0]
    assert int(keep[:16].sum()) == 4 and int(keep[16:28].sum()) in (2, 3) and not bool(keep[28])
    assert bool((dest[keep] == -1).all()) and bool(keep[dest[dest >= 0]].all())
    part = given.parts
    assert bool((part[dest[:28].clamp(min=0)] == part[:28])[dest[:28] >= 0].all())
    for block in dest[:16].unique().tolist():
        if block >= 0:
            inside = [i for i in range(16) if int(dest[i]) == block] + [block]
            assert len(inside) == 4 and {i // 8 for i in inside} == {block // 8}
