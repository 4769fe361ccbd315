from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from methods.vision.contract import kept, tokens

from tithe.errors import BadInput
from tithe.selections.density import ByContent, density
from tithe.selections.outliers import OutliersAndClusters, outliers, within


@pytest.mark.parametrize("seed", range(5))
def test_outliers_are_those_of_a_box_plot(seed: int) -> None:
    score = torch.randn(101, generator=torch.Generator().manual_seed(seed)).exp()
    low, high = np.percentile(score.double().numpy(), [25, 75])
    assert outliers(score).tolist() == (score.double().numpy() > high + 1.5 * (high - low)).tolist()
    assert outliers(score).any()


def test_scores_alike_have_no_outlier() -> None:
    assert not outliers(torch.ones(9)).any()


@pytest.mark.parametrize(
    ("count", "floor", "ceiling", "wanted"),
    [(0, 0, None, 1), (9, 0, 0.5, 5), (2, 0.4, 0.5, 4), (3, 6, 4, 6), (50, 0, 99, 10)],
)
def test_bounds(count: int, floor: float, ceiling: float | None, wanted: int) -> None:
    assert within(count, 10, floor, ceiling) == wanted


def test_one_stands_out_and_takes_in_its_nearest() -> None:
    score = torch.tensor([0.1, 0.1, 5.0, 0.2, 0.1, 0.1])[None, None]
    features = torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1], [1.0, 0.05], [-1, 0], [-1, 0.1]])[None]
    found = OutliersAndClusters(spatial=False, neighbours=2)(score, tokens(6), features)
    assert kept(found) == [2, 5], "the last of the others stands for all of them"
    assert found.mix is not None
    assert torch.allclose(found.mix[0, 2], torch.tensor([0.1, 0, 1, 0.2, 0, 0]))
    assert torch.allclose(found.mix[0, 5], torch.tensor([0.1, 0.1, 0, 0.2, 0.1, 0.1]))


def test_tokens_at_strides_besides() -> None:
    score = torch.zeros(1, 1, 24)
    score[..., 5] = score[..., 10] = 1.0
    features = torch.randn(1, 24, 4, generator=torch.Generator().manual_seed(0))
    found = OutliersAndClusters(spatial=True, neighbours=3)(score, tokens(24), features)
    assert kept(found) == [0, 4, 5, 8, 10, 12, 16, 20, 23]


def test_dead_tokens_and_newlines_take_no_part() -> None:
    origin = torch.zeros(8, 3)
    origin[3] = float("nan")
    live = torch.ones(1, 1, 8, dtype=torch.bool)
    live[..., 0] = False
    given = replace(tokens(8), origin=origin, valid=live)
    draw = torch.Generator().manual_seed(0)
    score, features = torch.rand(1, 1, 8, generator=draw), torch.randn(1, 8, 3, generator=draw)
    found = OutliersAndClusters(spatial=True, neighbours=32)(score, given, features)
    assert found.mix is not None
    assert not found.keep[0, 0, 0] and not found.keep[0, 0, 3]
    assert bool((found.mix[0, :, [0, 3]] == 0).all()) and bool((found.mix[0, [0, 3]] == 0).all())


def test_density_of_what_repeats() -> None:
    features = torch.eye(8)
    assert density(features, 0.5, 0.1) == 1.0
    features[4:] = features[4]
    assert density(features, 0.5, 0.1) == 0.5
    assert density(features, 0.5, 0.5) == 1.0, "three of seven others are not more than half"


def test_content_is_kept_by_its_density() -> None:
    score = torch.stack([torch.tensor([0.1, 0.1, 0.1, 9.0, 0.1, 0.1, 0.1, 0.1]), torch.arange(8.0)])[None]
    features = torch.eye(8)
    features[4:] = features[4]
    assert kept(ByContent(0.5, 0.1)(score, tokens(8), features[None])) == [3, 5, 6, 7]
    assert kept(ByContent(0.5, 0.1, ceiling=1)(score, tokens(8), features[None])) == [3]


def test_a_share_is_a_share() -> None:
    with pytest.raises(BadInput, match="many"):
        ByContent(0.5, -0.1)
