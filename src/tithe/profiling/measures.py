"""Which measurements make the profile of which method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tithe import catalogue
from tithe.budget import Keep
from tithe.profiling.drift import Sample, strategy
from tithe.profiling.gates import learned_gates
from tithe.profiling.importance import layer_importance
from tithe.profiling.merging import merge_thresholds
from tithe.scores.heads import Probe, best, retrieval_scores

Measured = tuple[dict[str, Any], dict[str, Any]]


def compresskv(
    model: Any, probes: Sequence[Probe], keep: Keep = 0.1, new: int = 50, recall: float = 0.5, voters: int = 4
) -> Measured:
    """Rank the query heads of every layer by retrieval; share out the budget by the error of evicting to ``keep``."""
    scores = retrieval_scores(model, probes, new, recall)
    heads = best(scores, scores.shape[1])
    voting = [ranked[:voters] for ranked in heads]
    step = catalogue.make("compresskv", {"keep": keep, "heads": voting}).steps[0]
    data = {
        "heads": heads,
        "scores": [[round(x, 6) for x in row] for row in scores.tolist()],
        "importance": layer_importance(model, probes, step, new),
    }
    return data, {"keep": keep, "new": new, "recall": recall, "voters": voters}


def duo_attention(
    model: Any,
    probes: Sequence[Probe],
    steps: int = 2000,
    sink: int = 128,
    recent: int = 256,
    rate: float = 0.02,
    sparing: float = 0.05,
) -> Measured:
    """Learn a gate for every key head between reading everything and reading ``sink`` and ``recent`` tokens."""
    gates, loss = learned_gates(model, probes, steps=steps, sink=sink, recent=recent, rate=rate, sparing=sparing)
    rounded = [[round(gate, 6) for gate in row] for row in gates.tolist()]
    settings = {"steps": steps, "sink": sink, "recent": recent, "rate": rate, "sparing": sparing, "loss": loss}
    return {"gates": rounded}, settings


def vflowopt(
    model: Any, probes: Sequence[Sample], keep: float = 0.25, initial: int = 10, steps: int = 50, deep: int = -2
) -> Measured:
    """Find the shares of the stages, and what makes a token important, under which the last token drifts least."""
    data, reached = strategy(model, probes, keep, initial, steps, deep)
    return data, {"keep": keep, "initial": initial, "steps": steps, "deep": deep, "likeness": reached}


def dymu(model: Any, probes: Sequence[Sample], keep: int | float = 1 / 3, schedule: str = "constant") -> Measured:
    """Learn how alike patches must be to merge, so that pictures keep ``keep`` of their tokens on the mean."""
    data = {"keep": keep, "thresholds": merge_thresholds(model, probes, keep, schedule)}
    return data, {"keep": keep, "schedule": schedule}


MEASURES: dict[str, Callable[..., Measured]] = {
    "compresskv": compresskv,
    "duo-attention": duo_attention,
    "dymu": dymu,
    "vflowopt": vflowopt,
}
