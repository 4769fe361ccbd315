from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from methods.context.contract import contract, generate, model, padded
from methods.context.recorded import Recorded, grouped, held, vector
from torch import Tensor

import tithe
from tithe.budget import Budget
from tithe.selections.top_k import PooledTopK, highest
from tithe.types import Tokens

VECTOR, META = vector("adakv")


def split(flat: Tensor, lens: Tensor) -> list[list[int]]:
    return [sorted(part.tolist()) for part in flat.split(lens.tolist())]


@pytest.mark.parametrize("case", ["mha", "gqa"])
@pytest.mark.parametrize("pads", [0, 13])
def test_sets_like_the_authors(case: str, pads: int) -> None:
    given = META["cases"][case]
    k = VECTOR["k"] if given.get("gqa_support") else grouped(VECTOR["k"], 4)
    recorded = Recorded(VECTOR["q"][0], k[0])
    params = {"window": given["window_size"], "kernel": given["kernel_size"], "floor": given["floor_alpha"]}
    with tithe.on(recorded.model, "adakv", keep=given["base_capacity"], level="scores", **params) as run:
        cache = recorded.play(96, pads=pads)
        run.end_prefill()
    assert [[c - pads for c in cols] for cols in held(cache)] == split(VECTOR[f"{case}_kept"], VECTOR[f"{case}_lens"])
    scores = run.trace.events[0].scores[..., pads : pads + 88] / given["window_size"]
    assert torch.allclose(scores, VECTOR[f"{case}_scores"], atol=1e-6)


def naive(q: Tensor, k: Tensor, keep: int, window: int, kernel: int, floor: float) -> list[list[int]]:
    """Kept columns per key head, from the equations, in loops and float64."""
    q, k = q.double(), k.double()
    heads, group, length = k.shape[0], q.shape[0] // k.shape[0], k.shape[1]
    past = length - window
    votes = torch.zeros(heads, past, dtype=torch.float64)
    for head in range(heads):
        for member in range(group):
            for query in range(past, length):
                logits = q[head * group + member, query] @ k[head, : query + 1].T / q.shape[-1] ** 0.5
                votes[head] += logits.softmax(0)[:past] / (window * group)
    score = F.max_pool1d(votes, kernel, 1, kernel // 2)
    each = keep - window
    pool = sorted((-score[h, c].item(), h, c) for h in range(heads) for c in range(past))[: heads * each]
    kept = []
    for head in range(heads):
        count = round(sum(h == head for _, h, _ in pool) * (1 - floor) + int(each * floor))
        best = sorted(range(past), key=lambda c: (-score[head, c].item(), c))[:count]
        kept.append(sorted(best) + list(range(past, length)))
    return kept


@pytest.mark.parametrize(("keep", "floor"), [(20, 0.2), (37, 0.0), (50, 1.0), (29, 0.5)])
def test_naive_reference(keep: int, floor: float) -> None:
    recorded = Recorded(VECTOR["q"][0], VECTOR["k"][0])
    with tithe.on(recorded.model, "adakv", keep=keep, window=8, kernel=5, floor=floor) as run:
        cache = recorded.play(96)
        run.end_prefill()
    got, wanted = held(cache), naive(VECTOR["q"][0], VECTOR["k"][0], keep, 8, 5, floor)
    assert [len(cols) for cols in got] == [len(cols) for cols in wanted]
    if floor == 1.0:
        assert len(got[0]) == len(got[1])
    assert [set(a) == set(b) for a, b in zip(got, wanted, strict=True)] == [True, True]


def test_contract() -> None:
    contract("adakv", window=4, kernel=3)


def test_heads_hold_different_numbers_and_the_rest_is_freed() -> None:
    _, events = generate("adakv", padded(), keep=16, window=4, kernel=3)
    counts = [heads for event in events for heads in event.heads_kept]
    assert any(a != b for a, b in counts)
    assert all(31 <= a + b <= 32 for a, b in counts)
    with tithe.on(model(), "adakv", keep=16, window=4, kernel=3) as run:
        model().generate(**padded(), max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
        held_tokens = sum(sum(map(sum, event.heads_kept)) + 4 for event in run.trace.events)
        assert run.report().kv_live == held_tokens * 2 * 16 * 4


def test_floor_of_one_is_an_even_split() -> None:
    score = torch.rand(2, 3, 30, generator=torch.Generator().manual_seed(0))
    cols = torch.arange(30).expand(2, 1, 30).int()
    tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([30, 30]))
    kept = PooledTopK(Budget(10), floor=1.0)(score, tokens).keep
    assert torch.equal(kept, highest(score, torch.tensor([[[10]]])))
