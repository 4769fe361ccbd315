"""A pruning strategy found on a few inputs: the one under which the last token of the prompt changes least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tithe import catalogue, hosts
from tithe.errors import BadInput
from tithe.flow import on
from tithe.profiling.bayes import Point, maximised
from tithe.selections.thirds import last_share
from tithe.types import Method

SENSITIVITY, ENTROPY, CELL = (0.5, 2.0), (0.0, 500.0), (2.0, 8.0)


@dataclass(frozen=True)
class Sample:
    """What a vision-language model takes: ``inputs`` with pictures and text, batches left-padded."""

    inputs: Mapping[str, Tensor]

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt of the first row."""
        return tuple(self.inputs["input_ids"][0].tolist())


def last_state(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return ``[B, d]``: the last token's state behind the last layer and the final norm."""
    with torch.no_grad():
        found: Tensor = model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
    return found.float()


def likeness(model: Any, method: Method, samples: Sequence[Sample], plain: Sequence[Tensor]) -> float:
    """Return the mean cosine of the last token's state under ``method`` with ``plain [B, d]``, that without it."""
    with on(model, method):
        under = [last_state(model, sample.inputs) for sample in samples]
    return float(torch.cat([cosine_similarity(a, b, dim=-1) for a, b in zip(under, plain, strict=True)]).mean())


def strategy(
    model: Any, samples: Sequence[Sample], keep: float, initial: int, steps: int, deep: int
) -> tuple[dict[str, Any], float]:
    """Find the shares of VFlowOpt's stages and its other numbers for ``model``; no answers are needed.

    Bayesian optimisation of the cosine between the last token's states with and without pruning, by a Gaussian process
    and expected improvement, from ``initial`` points drawn at random. The third share follows from the budget ``keep``;
    where it would exceed 1 nothing is tried. (VFlowOpt, arXiv:2508.05211.)

    Returns:
        What the method takes, by name, and the mean cosine reached.

    Raises:
        BadInput: samples that are none, or a ``keep`` that is not a fraction below 1.
    """
    if not samples or not all(isinstance(sample, Sample) for sample in samples):
        raise BadInput("vflowopt is measured on pictures: give probes=[tithe.profiling.drift.Sample(inputs), ...].")
    if not isinstance(keep, float) or not 0 < keep < 1:
        raise BadInput(f"keep={keep!r} is not possible: give a fraction in (0, 1), as something must go.")
    layers = len(hosts.find(model).layers)
    plain = [last_state(model, sample.inputs) for sample in samples]

    def allowed(point: Point) -> bool:
        try:
            return last_share(keep, point[0], point[1], layers) < 1
        except BadInput:
            return False

    def data(point: Point) -> dict[str, Any]:
        return {"shares": list(point[:2]), "sensitivity": point[2], "entropy": point[3], "cell": round(point[4])}

    def value(point: Point) -> float:
        given = {"keep": keep, "deep": deep, **data(point)}
        return likeness(model, catalogue.make("vflowopt", given), samples, plain)

    bounds = ((keep, min(1.0, 3 * keep)), (0.05, 1.0), SENSITIVITY, ENTROPY, CELL)
    best, reached = max(maximised(value, bounds, allowed, initial, steps, seed=0), key=lambda pair: pair[1])
    return data(best), reached
