"""A geometry transformer under the seam: what joins attends once, and everything is put back."""

from __future__ import annotations

import pytest
import tiny_robots
import torch

import tithe
from tithe.errors import BadInput, Refused
from tithe.seams.joining import Slots
from tithe.types import Selection


def test_ragged_rows_hide_their_dead_slots() -> None:
    keep = torch.tensor([[[True, True, False, True]], [[True, False, False, False]]])
    dest = torch.tensor([[[-1, 1, 1, -1]], [[-1, 0, 0, 0]]])
    slots = Slots.of(Selection(keep, torch.arange(4, dtype=torch.int32).expand(2, 1, 4), dest))
    assert slots is not None and slots.mask is not None
    x = torch.arange(8.0).view(2, 1, 4, 1)
    assert slots.gather(x)[..., 0].masked_fill(~slots.mask[:, :, 0], -1).tolist() == [
        [[0, 1, 3, 1.5]],
        [[5.5, -1, -1, -1]],
    ]
    assert slots.reads.tolist() == [[0, 1, 3, 2], [0, 0, 0, 0]]
    assert slots.mask[:, 0, 0].tolist() == [[True] * 4, [True, False, False, False]]


def test_nothing_joined_is_nothing_done() -> None:
    keep = torch.ones(1, 1, 3, dtype=torch.bool)
    cols = torch.arange(3, dtype=torch.int32)[None, None]
    assert Slots.of(Selection(keep, cols, torch.full((1, 1, 3), -1))) is None


def test_one_method_joins() -> None:
    model = tiny_robots.vggt()
    with tithe.on(model, ["fastvggt", tithe.method("fastvggt", seed=1)]), pytest.raises(Refused, match="Two methods"):
        model(**tiny_robots.frames())


def test_everything_is_put_back() -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames()
    with torch.no_grad():
        plain = model(**inputs).depth
        with tithe.on(model, "fastvggt"):
            model(inputs["images"])
        assert torch.equal(model(**inputs).depth, plain)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_images_of_another_shape() -> None:
    model = tiny_robots.vggt()
    with tithe.on(model, "fastvggt"), pytest.raises(BadInput, match="images"):
        model(torch.rand(2, 3, 16, 24))


def test_one_frame_joins_nothing() -> None:
    model, inputs = tiny_robots.vggt(), tiny_robots.frames(count=1)
    with torch.no_grad():
        plain = model(**inputs).pose
        with tithe.on(model, "fastvggt"):
            assert torch.equal(model(**inputs).pose, plain)
