"""Reaching: scenes are functions of a seed, pictures show them, the expert arrives, and so does the zoo's policy."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

import tithe
from tithe.bench.tasks import reach

FOLDER = Path(str(files("tithe.zoo") / "policy"))


@cache
def policy() -> Any:
    return reach.policy()


def test_scenes_repeat_and_squares_do_not_touch() -> None:
    one, again = reach.scenes(50, 3), reach.scenes(50, 3)
    assert torch.equal(one.squares, again.squares) and torch.equal(one.gripper, again.gripper)
    apart = (one.squares[:, :, None] - one.squares[:, None]).abs().amax(-1) * reach.SIDE
    assert float(apart[:, ~torch.eye(3, dtype=torch.bool)].min()) > 2 * reach.HALF + 1
    assert all(len(set(row.tolist())) == reach.SQUARES for row in one.colours)


def test_picture_shows_the_square_that_is_asked_for() -> None:
    world = reach.scenes(20, 5)
    world = replace(world, gripper=torch.full_like(world.gripper, 2.0))
    given = reach.observe(world)
    palette = torch.tensor(list(reach.COLOURS.values()))
    for row in range(20):
        word = int(given["input_ids"][row, -1]) - reach.WORDS
        alike = (given["pixel_values"][row, 0] / 2 + 0.5 - palette[word][:, None, None]).abs().amax(0) < 1e-3
        y, x = alike.nonzero().double().mean(0).tolist()
        assert abs((x + 0.5) / reach.SIDE - float(world.goal[row, 0])) < 0.04
        assert abs((y + 0.5) / reach.SIDE - float(world.goal[row, 1])) < 0.04


def test_expert_arrives_and_one_that_stands_still_does_not() -> None:
    class Expert:
        def __init__(self, rows: int, seed: int, scale: float) -> None:
            self.world, self.scale = reach.scenes(rows, seed), scale

        def sample_actions(self, state: torch.Tensor, **_: Any) -> torch.Tensor:
            return self.scale * reach.expert(replace(self.world, gripper=(state + 1) / 2))

    assert reach.success(Expert(40, 7, 1.0), rows=40, seed=7) == 1.0
    assert reach.success(Expert(40, 7, 0.0), rows=40, seed=7) < 0.2


def test_steps_are_at_most_the_longest() -> None:
    moves = reach.expert(reach.scenes(30, 1))
    assert float(moves.norm(dim=-1).max()) <= 1 + 1e-5


def test_weights_are_small_and_do_what_the_card_says() -> None:
    card = json.loads((FOLDER / "card.json").read_text())
    assert (FOLDER / "model.safetensors").stat().st_size < 2_000_000
    assert abs(reach.success(policy(), rows=100, seed=20_000) - card["success"]) < 0.15


@pytest.mark.parametrize("slug", ["vla-pruner", "efficientvla", "ttf-vla"])
def test_policy_still_acts_under_a_method(slug: str) -> None:
    params = {"vla-pruner": {"past": 1, "layer": 2}, "efficientvla": {"depth": 1.0, "interval": 2}}.get(slug, {})
    if slug != "ttf-vla":
        params["keep"] = 0.5
    plain = reach.success(policy(), rows=40)
    with tithe.on(policy(), slug, **params) as run:
        score = reach.success(policy(), rows=40)
    assert score > plain - 0.3
    events = run.trace.events
    assert any(sum(event.kept) < sum(event.seen) for event in events)
