from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vision
import torch
from torch import Tensor

import tithe
from tithe.errors import Refused
from tithe.hosts.base import Crops
from tithe.seams.groups import groups_of


def entry(places: Tensor, to_tokens: Any, n: int, crops: int) -> Any:
    """An image of ``n`` tokens."""
    return SimpleNamespace(
        encoding=SimpleNamespace(places=places), crop=Crops(n, rows=slice(0, crops), to_tokens=to_tokens)
    )


def test_groups_follow_the_packing_and_mixed_tokens_are_alone() -> None:
    places = torch.tensor([[0, 1, 1, 2], [0, 0, 0, 1]])

    def pack(patches: Tensor) -> Tensor:
        """The first crop backwards without its CLS token, the second in pairs, its mean; a newline behind."""
        pairs = patches[1].reshape(2, 2).mean(-1)
        return torch.cat([patches[0, 1:].flip(0), patches[1, 1:], pairs, patches.min()[None]])

    origin = torch.zeros(9, 3)
    origin[8] = torch.nan
    found = groups_of([entry(places, pack, 9, 2)], origin)
    assert found is not None
    same = (found[:, None] == found).int()
    wanted = torch.eye(9, dtype=torch.int32)
    for a, b in ((1, 2), (3, 4), (3, 6), (4, 6)):
        wanted[a, b] = wanted[b, a] = 1
    assert torch.equal(same[:8, :8], wanted[:8, :8]) and same[8].sum() == 1


def test_two_pictures_share_no_group() -> None:
    places = torch.tensor([[0, 1, 1]])
    one = entry(places, lambda patches: patches[0, 1:], 2, 1)
    found = groups_of([one, one], torch.zeros(4, 3))
    assert found is not None and found[0] == found[1] and found[2] == found[3] and found[0] != found[2]


def test_a_host_that_does_not_say_has_no_groups() -> None:
    assert groups_of([entry(torch.tensor([[0, 1]]), None, 2, 1)], torch.zeros(2, 3)) is None


def test_another_layer_of_the_tower_is_refused() -> None:
    model: Any = tiny_vision.VLMS["llava"].model()
    inputs = tiny_vision.prompt("llava", model, [1])
    with tithe.on(model, "dymu"), torch.no_grad(), pytest.raises(Refused, match="vision_feature_layer=-1"):
        model(**inputs, vision_feature_layer=-1)


def test_every_recorded_state_has_a_row_for_each_patch() -> None:
    """Also where states were recorded before the method was attached, whose hooks then come first."""
    model: Any = tiny_vision.llava()
    tower = model.model.vision_tower
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = tower(pixels, output_hidden_states=True)
        with tithe.on(model, "dymu", keep=4):
            merged = tower(pixels, output_hidden_states=True)
        again = tower(pixels, output_hidden_states=True)
    counts = [len(state[0].unique(dim=0)) for state in merged.hidden_states]
    assert [state.shape for state in merged.hidden_states] == [state.shape for state in plain.hidden_states]
    assert merged.last_hidden_state.shape == plain.last_hidden_state.shape
    assert counts[0] == 17 and counts[1:] == sorted(counts[1:], reverse=True) and counts[2] == 6
    assert all(torch.equal(a, b) for a, b in zip(again.hidden_states, plain.hidden_states, strict=True))
