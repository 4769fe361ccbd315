from __future__ import annotations

import pytest
import torch
from methods.vision.contract import layer, shown

from tithe.scores.cls import cls_joint, cls_logits, patch_keys

DRAW = torch.Generator().manual_seed(0)
Q, K = (torch.randn(2, 3, 10, 4, generator=DRAW) for _ in range(2))


@pytest.mark.parametrize("image", [0, 1])
def test_logits_are_the_mean_of_scaled_products(image: int) -> None:
    found = cls_logits(shown([layer(Q, K)], image), -1)
    assert found.shape == (1, 1, 9)
    for token in range(9):
        wanted = (
            sum(float(Q[image, head, 0].double() @ K[image, head, 1 + token].double()) / 2 for head in range(3)) / 3
        )
        assert float(found[0, 0, token]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("image", [0, 1])
def test_joint_takes_all_heads_as_one(image: int) -> None:
    logits = []
    for token in range(10):
        products = [float(Q[image, h, 0, c]) * float(K[image, h, token, c]) for h in range(3) for c in range(4)]
        logits.append(sum(products) / 12**0.5)
    wanted = torch.tensor(logits, dtype=torch.float64).softmax(-1)[1:]
    found = cls_joint(shown([layer(Q, K)], image), 0)
    assert torch.allclose(found[0, 0].double(), wanted, atol=1e-6)


def test_keys_of_each_token_lie_side_by_side() -> None:
    found = patch_keys(shown([layer(Q, K)], 1), 0)
    assert found.shape == (1, 9, 12)
    assert torch.equal(found[0, 4], torch.cat([K[1, head, 5] for head in range(3)]))
