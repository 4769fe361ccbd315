from __future__ import annotations

import pytest
import torch

from tithe.errors import Refused
from tithe.scores.views import bands, cells, emphasis, enlarged, regions, unit_per_part, whole_view
from tithe.types import Part


def parts(columns: int, crops: int, known: bool = True) -> list[Part]:
    none = torch.zeros(0, dtype=torch.long)
    large = [Part((2, 2), none, n, False, 0, cell=divmod(n, columns) if known else None) for n in range(crops)]
    return [Part((2, 2), none, crops, True, 0), *large]


def test_crops_lie_where_the_host_says() -> None:
    assert whole_view(parts(2, 4)) == 0 and whole_view(parts(2, 4)[1:]) is None
    assert cells(parts(2, 4), 0) == ([1, 2, 3, 4], [(0, 0), (0, 1), (1, 0), (1, 1)])
    with pytest.raises(Refused, match="where the crops"):
        cells(parts(2, 4, known=False), 0)


def test_regions_of_a_mosaic() -> None:
    found = regions((4, 6), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]).view(4, 6)
    assert found.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2


def test_what_does_not_divide_goes_to_the_last_crop() -> None:
    assert regions((5, 5), [(0, 0), (0, 1), (1, 0), (1, 1)]).view(5, 5)[3].tolist() == [2, 2, 3, 3, 3]


def test_bands_are_runs_of_the_flattened_raster() -> None:
    assert bands((4, 4), 4).view(4, 4).tolist() == [[row] * 4 for row in range(4)]
    assert not torch.equal(bands((4, 4), 4), regions((4, 4), [(0, 0), (0, 1), (1, 0), (1, 1)]))


def test_emphasis_by_hand() -> None:
    share = torch.tensor([0.0, 2.0], dtype=torch.float64).softmax(-1)
    wanted = 1 + share - 0.5
    assert torch.allclose(emphasis(torch.tensor([5.0, 25.0]), 10.0), wanted, atol=1e-7)


def test_enlarged_keeps_the_middle_between_two_patches() -> None:
    view = torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = enlarged(view, (2, 2), torch.arange(1, 17), (4, 4), 18)
    assert found[0] == found[17] == 0
    assert torch.allclose(found[1:17].view(4, 4), torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(4, 4))


def test_units_are_taken_part_by_part() -> None:
    score, part = torch.tensor([3.0, 4.0, 7.0, 5.0, 12.0]), torch.tensor([0, 0, -1, 1, 1])
    assert torch.allclose(unit_per_part(score, part), torch.tensor([0.6, 0.8, 7.0, 5 / 13, 12 / 13]))
