"""inseq (Apache-2.0): attribution of generated words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.attribution import SAID, beside
from benchmarks.peers.envs import Environment
from benchmarks.peers.rows import Row
from benchmarks.peers.settings import Scale

ENVIRONMENT = Environment("inseq", ("inseq==0.7.1", "transformers==5.23.0"))
METHODS = ("attention", "input_x_gradient", "saliency", "integrated_gradients")
NOTES = (
    SAID,
    "Only `attention` is the same method on both sides; inseq reads it from eager attention, ours from the queries. "
    "Integrated gradients take 20 steps; attributions of embeddings are reduced by their norm, as inseq does.",
)
LACKS = (
    "inseq attributes by gradients, integrated gradients, occlusion, LIME and more, word by word of a whole answer, to "
    "encoder-decoder models too; Tithe has no attribution by gradients or by perturbation.",
)


def measured(python: str, scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows."""
    return beside(python, "inseq_side", METHODS, scale, folder)
