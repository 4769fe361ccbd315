"""Pictures chosen for another engine: the encoder and its steps run, the language model does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.seams import encoder
from tithe.seams.features import placeholders
from tithe.seams.inputs import encoder_outputs
from tithe.seams.stream import Stream
from tithe.trace import Stopwatch
from tithe.types import IMAGE, TEXT

if TYPE_CHECKING:
    from tithe.flow import Run


@dataclass(frozen=True)
class Handed:
    """What is left of the pictures of one prompt.

    ``levels [k, d]`` each: the features for the language model, then those that go to its deeper layers; ``kept [n]``
    says which of the prompt's placeholders they stand for, ``run [n]`` how far each placeholder is behind the first.
    ``stacked``: the model holds the features of all pictures in one tensor.
    """

    levels: tuple[Tensor, ...]
    kept: Tensor
    run: Tensor
    stacked: bool


@torch.no_grad()
def hand_over(run: Run, inputs: dict[str, Any]) -> Handed:
    """Encode and choose the pictures of ``inputs``, a prompt of one row; refuse steps that act elsewhere."""
    for method in run.methods:
        for step in method.steps:
            if step.site.point not in ("encoder", "block") or step.site.tower != "image":
                raise Refused(
                    f"{method.card.slug} acts at the {step.site.point} site, inside the language model: what it saves "
                    "cannot be handed over as embeddings. Give a method that chooses before the language model."
                )
    ids = inputs["input_ids"]
    cols = torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device)[None]
    kind = torch.where(placeholders(run.host, ids), IMAGE, TEXT)
    run.stream, run.phase = Stream(cols, torch.ones_like(cols, dtype=torch.bool), 0, ids.shape[1], kind=kind), "prefill"
    try:
        outputs = encoder_outputs(encoder.encoded(run, inputs))
        with Stopwatch(run.trace.clocks["select"]):
            gallery = encoder.chosen(run, outputs, ids)
        places = torch.cat([entry.cols for entry in gallery.entries])
        order = torch.cat([torch.arange(entry.place.start, entry.place.stop) for entry in gallery.entries])
        kept = gallery.kept[order]
        stacked = isinstance(outputs["image"].pooler_output, Tensor)
        return Handed(tuple(level[order][kept] for level in gallery.levels), kept, places - places[0], stacked)
    finally:
        run.stream = None
