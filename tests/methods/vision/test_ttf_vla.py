"""TTF-VLA: the authors' masks on recorded pictures and attention, and tokens of an episode that are really reused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_robots
import torch
from methods.context.recorded import vector
from torch import Tensor

import tithe
from tithe.check.answers import dimmed
from tithe.scores.pixels import changed
from tithe.seams.episode import Episode, PolicyEvidence
from tithe.types import IMAGE, Tokens

PATCHES, SIDE = 256, 16


def test_masks_are_the_authors() -> None:
    found, meta = vector("ttf-vla")
    (step,) = tithe.method(
        "ttf-vla", change=meta["change"], interval=meta["interval"], relevant=meta["relevant"], layer=0
    ).steps
    assert step.score is not None and step.select is not None
    cols = torch.arange(PATCHES, dtype=torch.int32)[None, None]
    alive = torch.ones_like(cols, dtype=torch.bool)
    tokens = Tokens(cols, alive, torch.tensor([PATCHES]), torch.full_like(cols, IMAGE), ((SIDE, SIDE),))
    place = torch.arange(PATCHES)[None]
    episode = Episode()
    for number, wanted in enumerate(found["keep"]):
        pixels = found["small"][number].float().repeat_interleave(7, 1).repeat_interleave(7, 2)[None, None]
        evidence = PolicyEvidence(episode, {}, 16, torch.zeros(1, PATCHES, 1), pixels, place)
        picked = step.select(step.score(evidence, tokens), tokens)  # type: ignore[call-arg, arg-type]
        assert torch.equal(picked.keep[0, 0], wanted), number
        episode.pixels = pixels
        episode.close({("text", 0): found["words"][number][None]}, {("text", 0): 1})
    assert found["keep"].sum(-1).tolist() != [PATCHES] * 4


def test_change_is_that_of_plain_loops() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    got = changed(a, b, (2, 3))
    for picture in range(2):
        for row in range(2):
            for column in range(3):
                total = 0.0
                for y in range(4):
                    for x in range(4):
                        here = (picture, slice(None), 4 * row + y, 4 * column + x)
                        total += abs(
                            sum(w * float(d) for w, d in zip((0.299, 0.587, 0.114), a[here] - b[here], strict=True))
                        )
                assert abs(float(got[picture, 3 * row + column]) - total / 16) < 1e-5


def features_of(model: Any, inputs: dict[str, Tensor], steps: int, run: Any) -> list[Tensor]:
    shown = []
    for step in range(steps):
        model.sample_actions(**{**inputs, **dimmed(inputs, step)})
        shown.append(run._seams[0].episode.features.clone())
    return shown


def test_tokens_that_are_not_kept_are_the_last_ones() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    with tithe.on(model, "ttf-vla", interval=3, relevant=2, layer=1, level="history") as run:
        shown = features_of(model, inputs, 5, run)
        history = run.trace.history
    with tithe.on(model, "ttf-vla", interval=1, level="history") as run:
        fresh = features_of(model, inputs, 5, run)
    assert [sum(event.kept) < sum(event.seen) for event in history] == [False, True, True, False, True]
    for step, event in enumerate(history):
        assert event.keep is not None
        keep = (
            event.keep[:, 0, :, None]
            | (torch.arange(32) >= 16)[None, :, None] & torch.tensor([False, True])[:, None, None]
        )
        wanted = fresh[step] if step % 3 == 0 else torch.where(keep, fresh[step], shown[step - 1])
        live = torch.ones(2, 32, dtype=torch.bool)
        live[1, 16:] = False
        assert torch.equal(shown[step][live], wanted[live]), step


def test_dark_half_is_taken_anew_and_the_rest_reused() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    with tithe.on(model, "ttf-vla", relevant=1, layer=1, level="kept") as run:
        for step in range(2):
            model.sample_actions(**{**inputs, **dimmed(inputs, step)})
        (event,) = run.trace.events
    assert event.keep is not None
    first = event.keep[0, 0].view(2, 4, 4)
    assert bool(first[:, 2:].all()) and int(first[:, :2].sum()) <= 1
    assert run.report().saving == "simulated" and run.report().flops == run.report().flops_full


def test_interval_out_of_range() -> None:
    with pytest.raises(tithe.BadInput, match="interval=0"):
        tithe.method("ttf-vla", interval=0)
