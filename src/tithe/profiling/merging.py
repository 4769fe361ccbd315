"""How alike patches must be to be merged, block by block, learnt from pictures: enough for a mean budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tithe import hosts
from tithe.actions.apart import MergeApart
from tithe.budget import Budget
from tithe.errors import BadInput, Refused
from tithe.flow import on
from tithe.plan import reach
from tithe.profiling.drift import Sample
from tithe.seams.inputs import arguments
from tithe.selections.thresholds import AlikeInBatch, done
from tithe.types import Card, Method, Need, Site, Step

_CARD = Card("merge-thresholds", "", 2025, None, None, "vision", ("vlm",), "definition", "real", "")


def merge_thresholds(model: Any, samples: Sequence[Sample], keep: int | float, schedule: str) -> list[float | None]:
    """Return for each block of the vision tower the likeness above which patches join, None where none should.

    In each sample, a batch of pictures, a block joins the pairs most alike of all pictures together, as many as keep
    their mean on the way to ``keep``; the first pair left over is its threshold, and the mean over samples is returned.
    (DyMU, arXiv:2504.17040, as in its authors' code.)

    Raises:
        BadInput: samples that are none, or hold no pictures.
        Refused: a model whose tower cannot be worked in.
    """
    if not samples or not all(isinstance(sample, Sample) and "pixel_values" in sample.inputs for sample in samples):
        raise BadInput("dymu is measured on pictures: give probes=[tithe.profiling.drift.Sample(inputs), ...].")
    host = hosts.find(model)
    if host.vision is None or host.vision.tail is None:
        raise Refused(f"{host.name} declares no block tail of a vision tower, so patches cannot be merged in it.")
    total = reach(host)
    notes: list[list[float]] = [[] for _ in range(total)]
    encode = model.base_model.get_image_features
    with on(model, Method(_CARD, {}, (_step(Budget(keep), schedule, notes),))), torch.no_grad():
        for sample in samples:
            encode(**arguments(encode, dict(sample.inputs)))
    return [sum(note) / len(note) if note else None for note in notes]


def _step(budget: Budget, schedule: str, notes: list[list[float]]) -> Step:
    def selecting(layer: int, layers: int) -> AlikeInBatch:
        before, share = done(layer, layers, schedule), done(layer + 1, layers, schedule)
        return AlikeInBatch(budget, before, share, notes[layer].append)

    step = Step(
        Site("block", tower="image"),
        compare=lambda evidence, tokens: evidence.here.keys.float().mean(1),
        action=MergeApart(together=True),
        needs=(Need("queries", tower="image"),),
    )
    return replace(step, per_layer=lambda layer, layers: replace(step, select=selecting(layer, layers)))
