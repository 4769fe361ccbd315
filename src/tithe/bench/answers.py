"""Answer stability: does a method change what the model says, and how far it moves the distribution it says it from.

A method may change answers without making them worse, and may move the distribution without changing an answer; a
share of right answers shows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor
from transformers import LogitsProcessor

STEPS = 16


class Recorder(LogitsProcessor):
    """Keeps the log-probabilities of the first ``steps`` tokens that ``generate`` writes, and changes nothing.

    Pass it in ``logits_processor``. ``generate`` puts it behind the processors that it makes from the generation
    config (penalties, forbidden tokens) and before those of sampling: in greedy writing the recorded distribution is
    the one whose maximum is written. Of a batch it hears the first row. Memory: ``steps`` x vocabulary x 4 bytes.
    """

    def __init__(self, steps: int = STEPS) -> None:
        self.steps = steps
        self._kept: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record ``scores [B, V]`` and return them as they are."""
        if len(self._kept) < self.steps:
            self._kept.append(torch.log_softmax(scores[0].detach().float(), -1).cpu())
        return scores

    @property
    def logs(self) -> Tensor:
        """The log-probabilities, float32 ``[steps written, V]`` on the CPU; ``[0, 0]`` before any was."""
        return torch.stack(self._kept) if self._kept else torch.empty(0, 0)


def agreement(given: Sequence[str], untouched: Sequence[str]) -> float:
    """Return the share of answers that are word for word the untouched model's, 0 to 1; white space does not count.

    Raises:
        ValueError: no answers, or not as many of both.
    """
    if not given or len(given) != len(untouched):
        raise ValueError(f"{len(given)} answers stand against {len(untouched)} of the untouched model.")
    return sum(one.split() == other.split() for one, other in zip(given, untouched, strict=True)) / len(given)


def divergence(reference_logs: Tensor, logs: Tensor, ids: Sequence[int], reference_ids: Sequence[int]) -> float:
    """Return the mean KL(untouched || method) in nats over the places of an answer whose prefixes are equal.

    These are the places up to and including the first at which the written tokens differ: behind it the two models
    answer different prefixes, and their distributions say nothing about the method.

    Args:
        reference_logs: log-probabilities ``[S, V]`` of the untouched model, place by place.
        logs: those of the model under the method, ``[S', V]``.
        ids: the tokens written under the method.
        reference_ids: those that the untouched model wrote.

    Raises:
        ValueError: vocabularies of different sizes, or no place that both recorded.
    """
    if logs.shape[-1] != reference_logs.shape[-1]:
        raise ValueError(f"vocabularies of {logs.shape[-1]} and {reference_logs.shape[-1]} tokens do not compare.")
    places = min(shared(ids, reference_ids) + 1, len(ids), len(reference_ids), len(logs), len(reference_logs))
    if not places:
        raise ValueError("no place was recorded by both; nothing to compare.")
    true, other = reference_logs[:places].double(), logs[:places].double()
    # A forbidden token has log 0: the untouched model never says it, so it adds nothing.
    nats = torch.where(true.isneginf(), 0.0, true.exp() * (true - other)).sum(-1)
    return float(nats.mean().clamp(min=0))


def shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return the length of the longest prefix of both."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))
