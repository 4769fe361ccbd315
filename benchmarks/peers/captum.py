"""captum (BSD-3): attribution of any output of a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.attribution import SAID, beside
from benchmarks.peers.envs import Environment
from benchmarks.peers.rows import Row
from benchmarks.peers.settings import Scale

ENVIRONMENT = Environment("captum", ("captum==0.9.0", "transformers==5.23.0"))
METHODS = ("input_x_gradient", "saliency", "integrated_gradients", "occlusion")
NOTES = (
    SAID,
    "None of these is a method of ours: the job is the same, the definition is not. Gradients are those of the "
    "answer's probability by the embeddings, reduced by their norm; integrated gradients take 20 steps, occlusion "
    "hides one token at a time.",
)
LACKS = (
    "captum attributes by gradients, integrated gradients, occlusion, Shapley values and more, to any input of any "
    "PyTorch model; Tithe has no attribution by gradients or by perturbation.",
)


def measured(python: str, scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows."""
    return beside(python, "captum_side", METHODS, scale, folder)
