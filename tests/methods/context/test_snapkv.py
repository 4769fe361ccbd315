from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from methods.context.contract import contract, does_not_compound, generate, padded
from methods.context.recorded import Recorded, grouped, held, same_set, vector
from torch import Tensor

import tithe

VECTOR, META = vector("snapkv")
CASES = {"avg": "avg", "max": "max", "avg_gqamean": "avg"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pads", [0, 13])
def test_sets_like_the_authors(case: str, pads: int) -> None:
    given = META["cases"][CASES[case]]
    k = VECTOR["k"] if "gqa" in case else grouped(VECTOR["k"], 4)
    recorded = Recorded(VECTOR["q"][0], k[0])
    window, pooling = given["window_size"], given["pooling"].removesuffix("pool")
    params = {"window": window, "kernel": given["kernel_size"], "pooling": pooling}
    with tithe.on(recorded.model, "snapkv", keep=given["max_capacity_prompt"], level="scores", **params) as run:
        cache = recorded.play(96, pads=pads)
        run.end_prefill()
    wanted = VECTOR[f"{case}_kept"][0]
    assert all(same_set([c - pads for c in cols], wanted[head]) for head, cols in enumerate(held(cache)))
    scores = run.trace.events[0].scores[..., pads : pads + 96 - window]
    scale = window if "gqa" in case else 1
    assert torch.allclose(scores / scale, VECTOR[f"{case}_scores"], atol=1e-5)


def naive(q: Tensor, k: Tensor, window: int, kernel: int) -> Tensor:
    """Pooled votes per key head, from the equations, in loops and float64."""
    q, k = q.double(), k.double()
    heads, group, length = k.shape[0], q.shape[0] // k.shape[0], k.shape[1]
    votes = torch.zeros(heads, length - window, dtype=torch.float64)
    for head in range(q.shape[0]):
        for query in range(length - window, length):
            logits = q[head, query] @ k[head // group, : query + 1].T / q.shape[-1] ** 0.5
            votes[head // group] += logits.softmax(0)[: length - window] / group
    return F.max_pool1d(votes, kernel, 1, kernel // 2)


@pytest.mark.parametrize("keep", [14, 31, 60])
def test_naive_reference_whatever_the_order_of_ties(keep: int) -> None:
    recorded = Recorded(VECTOR["q"][0], VECTOR["k"][0])
    with tithe.on(recorded.model, "snapkv", keep=keep, window=8, kernel=7) as run:
        cache = recorded.play(96)
        run.end_prefill()
    score = naive(VECTOR["q"][0], VECTOR["k"][0], 8, 7)
    for head, cols in enumerate(held(cache)):
        assert len(cols) == keep
        assert cols[-8:] == list(range(88, 96))
        best = score[head].sort(descending=True).values[: keep - 8]
        assert torch.allclose(score[head][cols[:-8]].sort(descending=True).values, best, atol=1e-6)


def test_contract() -> None:
    contract("snapkv", window=4, kernel=3)
    does_not_compound("snapkv", window=4, kernel=3)


def test_budget_to_the_token() -> None:
    _, events = generate("snapkv", padded(), keep=0.3, window=4)
    assert {event.heads_kept for event in events} == {((12, 12), (8, 8))}
