from __future__ import annotations

import pytest
import torch
from methods.vision.contract import layer, shown, tokens
from torch import Tensor

from tithe.scores.vision import alike, cls_attention, cls_times_value, received_attention
from tithe.seams.evidence import Evidence
from tithe.seams.image import TowerLayer

DRAW = torch.Generator().manual_seed(0)
Q, K, V = (torch.randn(2, 3, 10, 4, generator=DRAW) for _ in range(3))


def probabilities(crop: int) -> Tensor:
    """``[H, n, n]`` in float64, query by query."""
    rows = torch.empty(3, 10, 10, dtype=torch.float64)
    for head in range(3):
        for query in range(10):
            logits = [float(Q[crop, head, query].double() @ K[crop, head, key].double()) / 2 for key in range(10)]
            rows[head, query] = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    return rows


@pytest.mark.parametrize("image", [0, 1])
def test_cls_attention(image: int) -> None:
    wanted = probabilities(image)[:, 0, 1:].mean(0)
    found = cls_attention(shown([layer(Q, K)], image), -1)
    assert found.shape == (1, 1, 9)
    assert torch.allclose(found[0, 0].double(), wanted, atol=1e-6)


@pytest.mark.parametrize("image", [0, 1])
def test_received_attention(image: int) -> None:
    wanted = probabilities(image).mean(0).sum(0)
    found = received_attention(shown([layer(Q, K)], image, lambda patches: patches[0]), 0)[0, 0]
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    assert found.mean() == pytest.approx(1)


def test_received_attention_of_pieces_that_attend_within_themselves() -> None:
    """A tower with windows: what one piece receives does not depend on the others, however many queries they have."""
    pieces = [layer(Q[:1, :, start:stop], K[:1, :, start:stop]) for start, stop in ((0, 4), (4, 10))]
    seen = {("image", 0): TowerLayer(pieces)}
    evidence = Evidence(seen, None, {"image": 1}, to_tokens=lambda patches: patches[0])  # type: ignore[arg-type]
    found = received_attention(evidence, 0)[0, 0]
    alone = [received_attention(shown([piece], 0, lambda patches: patches[0]), 0)[0, 0] for piece in pieces]
    assert torch.allclose(found, torch.cat(alone))
    assert found[:4].mean() == pytest.approx(1) and found[4:].mean() == pytest.approx(1)


def test_received_attention_streams_over_many_queries() -> None:
    q, k = (torch.randn(1, 2, 600, 4, generator=DRAW) for _ in range(2))
    found = received_attention(shown([layer(q, k)], 0, lambda patches: patches[0]), 0)[0, 0]
    wanted = (q @ k.mT / 2).softmax(-1).mean(1).sum(1)[0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_cls_times_value() -> None:
    among = torch.ones(2, 1, 10, dtype=torch.bool)
    among[..., 0] = False
    found = cls_times_value(layer(Q, K, V), among)
    for crop in range(2):
        rows = probabilities(crop)
        raw = [
            sum(float(rows[head, 0, key]) for head in range(3)) * float(V[crop, :, key].double().norm())
            for key in range(1, 10)
        ]
        wanted = torch.tensor([0.0, *(one / sum(raw) for one in raw)])
        assert torch.allclose(found[crop, 0], wanted, atol=1e-6)


def test_alike() -> None:
    assert alike(tokens(7)).tolist() == [[[0.0] * 7]]
