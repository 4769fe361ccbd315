from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from tithe.scores.similarity import head_mean, partners, with_features


def test_partners_by_loops() -> None:
    features = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    movable = torch.ones(2, 1, 9, dtype=torch.bool)
    movable[:, :, 0] = False
    movable[1, :, [3, 6]] = False
    found = partners(features, movable)
    for row in range(2):
        for place in range(9):
            others = [n for n in range(1, 9, 2) if movable[row, 0, n]]
            if place % 2 or not movable[row, 0, place]:
                assert found[row, 0, place] == torch.inf and found[row, 1, place] == -1
                continue
            likeness = [float(cosine_similarity(features[row, place], features[row, n], dim=0)) for n in others]
            assert found[row, 1, place] == others[likeness.index(max(likeness))]
            assert abs(found[row, 0, place] - (1 - max(likeness))) < 1e-6


def test_partners_do_not_depend_on_length() -> None:
    features = torch.randn(1, 8, 5)
    everywhere = torch.ones(1, 1, 8, dtype=torch.bool)
    assert torch.allclose(
        partners(features, everywhere), partners(features * torch.rand(1, 8, 1) * 9, everywhere), atol=1e-5
    )


def test_head_mean_is_float32() -> None:
    keys = torch.randn(2, 3, 5, 4, dtype=torch.bfloat16)
    assert torch.equal(head_mean(keys), keys.float().sum(1) / 3)


def test_features_ride_below_the_score() -> None:
    score, features = torch.randn(2, 1, 5), torch.randn(2, 5, 3)
    rows = with_features(score, features)
    assert torch.equal(rows[:, :1], score) and torch.equal(rows[:, 1:].mT, features)
