from __future__ import annotations

import pytest
import torch
from methods.vision.contract import beats_random, contract, generated, prompts
from methods.vision.inner import features
from torch import Tensor


def by_pairs(rows: Tensor, count: int) -> list[int]:
    """The greedy answer to the max-min diversity problem, from the distances of all pairs, in float64."""
    unit = rows.double() / rows.double().norm(dim=-1, keepdim=True)
    apart = (1 - unit @ unit.T).tolist()
    n = len(rows)
    chosen = [max(range(n), key=lambda i: min(apart[i][j] for j in range(n) if j != i))]
    while len(chosen) < count:
        chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: min(apart[i][j] for j in chosen)))
    return sorted(chosen)


@pytest.mark.parametrize("keep", [2, 5, 0.6])
def test_end_to_end_against_pairs(keep: int | float) -> None:
    inputs = prompts([1, 2])
    _, run = generated("divprune", inputs, keep=keep)
    count = keep if isinstance(keep, int) else int(16 * keep)
    for rows, event in zip(features(inputs), run.trace.events, strict=True):
        assert event.keep[0, 0].nonzero()[:, 0].tolist() == by_pairs(rows, count)


def test_the_cache_holds_what_was_kept() -> None:
    inputs = prompts([1, 2])
    out, _ = generated("divprune", inputs, keep=3)
    text = inputs["attention_mask"].sum(-1) - torch.tensor([16, 32])
    held = out.past_key_values.layers[0].store.view().valid[:, 0].sum(-1)
    assert torch.equal(held, text + torch.tensor([3, 6]) + 2)


def test_reads_better_than_random_tokens() -> None:
    beats_random("divprune", gap=0.1)


def test_contract() -> None:
    contract("divprune")
