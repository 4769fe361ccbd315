"""Reaching: a gripper among coloured squares, told which one to go to. For the policy of the zoo.

A scene is a picture of 32 x 32 pixels, 8 x 8 patches of 4, with three squares of different colours and a white cross,
the gripper. The instruction names a colour; the gripper's place is the state; an action is a step of at most ``REACH``
of the picture's side. All is a pure function of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from transformers import PI0ForConditionalGeneration

from tithe.zoo.loader import quiet

SIDE, PATCH, CAMERAS = 32, 4, 1
GRID = SIDE // PATCH
TOKENS = GRID * GRID
COLOURS = {
    "red": (1.0, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.2, 0.3, 1.0), "yellow": (1.0, 0.95, 0.1),
    "pink": (1.0, 0.2, 0.9),
}  # fmt: skip
SQUARES, HALF = 3, 2
IMAGE, PAD, START, WORDS = 1, 0, 2, 3
VOCAB = 16
CHUNK, REACH, NEAR, STEPS = 4, 0.12, 0.1, 6


@dataclass(frozen=True)
class Scenes:
    """``squares [B, 3, 2]`` centres and ``gripper [B, 2]`` as (x, y) in (0, 1), ``colours [B, 3]``, ``asked [B]``."""

    squares: Tensor
    gripper: Tensor
    colours: Tensor
    asked: Tensor

    @property
    def goal(self) -> Tensor:
        """Where to go, ``[B, 2]``."""
        return self.squares.gather(1, self.asked[:, None, None].expand(-1, 1, 2))[:, 0]


def scenes(rows: int, seed: int) -> Scenes:
    """Draw ``rows`` scenes whose squares do not touch."""
    draw = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(9, generator=draw)[:SQUARES] for _ in range(rows)])
    corner = torch.stack([cells % 3, cells // 3], -1).float()
    squares = (corner + 0.5 + 0.5 * (torch.rand(rows, SQUARES, 2, generator=draw) - 0.5)) / 3
    colours = torch.stack([torch.randperm(len(COLOURS), generator=draw)[:SQUARES] for _ in range(rows)])
    gripper = 0.08 + 0.84 * torch.rand(rows, 2, generator=draw)
    return Scenes(squares, gripper, colours, torch.randint(SQUARES, (rows,), generator=draw))


def picture(world: Scenes) -> Tensor:
    """Paint the scenes: ``[B, 1, 3, 32, 32]`` in [-1, 1], the gripper on top."""
    line = torch.arange(SIDE) + 0.5
    palette = torch.tensor(list(COLOURS.values()))
    out = torch.full((len(world.gripper), 3, SIDE, SIDE), 0.15)
    for place in range(SQUARES):
        centre = world.squares[:, place] * SIDE
        inside = _within(line, centre, HALF + 0.5, HALF + 0.5)
        out = torch.where(inside[:, None], palette[world.colours[:, place]][:, :, None, None], out)
    centre = world.gripper * SIDE
    cross = _within(line, centre, 2.5, 0.75) | _within(line, centre, 0.75, 2.5)
    return (torch.where(cross[:, None], 1.0, out) * 2 - 1)[:, None]


def _within(line: Tensor, centre: Tensor, across: float, down: float) -> Tensor:
    x = (line[None] - centre[:, :1]).abs() <= across
    y = (line[None] - centre[:, 1:]).abs() <= down
    return y[:, :, None] & x[:, None]


def observe(world: Scenes) -> dict[str, Tensor]:
    """Return what the policy is given, without noise: ids, mask, picture, cameras, state."""
    rows = len(world.gripper)
    asked = world.colours.gather(1, world.asked[:, None]) + WORDS
    ids = torch.cat([torch.full((rows, TOKENS), IMAGE), torch.full((rows, 1), START), asked], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": picture(world),
        "pixel_attention_mask": torch.ones(rows, CAMERAS, dtype=torch.bool),
        "state": world.gripper * 2 - 1,
    }


def expert(world: Scenes) -> Tensor:
    """Return the moves ``[B, 4, 2]`` straight to the goal, in units of the longest step."""
    at, moves = world.gripper, []
    for _ in range(CHUNK):
        way = world.goal - at
        length = way.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        step = way * (REACH / length).clamp(max=1)
        at = at + step
        moves.append(step / REACH)
    return torch.stack(moves, 1)


def moved(world: Scenes, actions: Tensor, count: int = CHUNK) -> Scenes:
    """Carry out the first ``count`` of ``actions [B, 4, 2]``."""
    return replace(world, gripper=(world.gripper + REACH * actions[:, :count].sum(1)).clamp(0, 1))


@torch.no_grad()
def success(model: Any, rows: int = 200, seed: int = 10_000, steps: int = STEPS, count: int = 2) -> float:
    """Return the share of ``rows`` episodes whose gripper ends nearer than ``NEAR`` to the goal.

    The policy is asked ``steps`` times and the first ``count`` actions of each chunk are carried out. All rows of an
    episode begin together: attach a method anew, or reset its run, before each call.
    """
    world = scenes(rows, seed)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        noise = torch.randn(rows, CHUNK, 2, generator=draw)
        world = moved(world, model.sample_actions(**observe(world), noise=noise), count)
    return float(((world.gripper - world.goal).norm(dim=-1) < NEAR).float().mean())


def policy() -> PI0ForConditionalGeneration:
    """Load the policy of the zoo, float32, in eval mode."""
    place = str(files("tithe.zoo") / "policy")
    with quiet():
        return PI0ForConditionalGeneration.from_pretrained(place, dtype=torch.float32).eval()
