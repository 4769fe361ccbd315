from __future__ import annotations

import pytest
import torch
from methods.context.contract import contract, does_not_compound, model, padded
from methods.context.recorded import Recorded, held, same_set, vector
from torch import Tensor

import tithe

VECTOR, META = vector("h2o")
PROMPT, STEPS = META["prompt"], META["decode"]


def mass_of(cache, layer: int = 0) -> Tensor:
    return cache.layers[layer].store.side("mass")[0]


def test_every_step_like_the_authors() -> None:
    recorded = Recorded(VECTOR["q"][0], VECTOR["k"][0], VECTOR["v"][0])
    with tithe.on(recorded.model, "h2o", keep=12, recent=6, level="history") as run:
        cache = recorded.play(PROMPT, STEPS)
    events = run.trace.history
    assert len(events) == STEPS + 1
    for step, event in enumerate(events):
        for head in range(4):
            cols = event.cols[0, min(head, event.cols.shape[1] - 1)]
            assert same_set(cols[event.keep[0, head]].tolist(), VECTOR["drop_kept"][step, head]), (step, head)
    for head, cols in enumerate(held(cache)):
        wanted = dict(
            zip(VECTOR["drop_kept"][-1, head].tolist(), VECTOR["drop_scores"][-1, head].tolist(), strict=True)
        )
        assert mass_of(cache)[head].tolist() == pytest.approx([wanted[c] for c in cols], abs=1e-4)
    outputs = recorded.outputs()
    assert torch.allclose(outputs[0], VECTOR["drop_out_prefill"], atol=1e-5)
    assert torch.allclose(torch.cat(outputs[1:], 2), VECTOR["drop_out"], atol=1e-5)


def test_groups_vote_like_the_factory() -> None:
    recorded = Recorded(VECTOR["q"][0], VECTOR["k"][0, :2], VECTOR["v"][0, :2])
    with tithe.on(recorded.model, "h2o", keep=12, recent=6) as run:
        cache = recorded.play(PROMPT)
        run.end_prefill()
    assert all(same_set(cols, VECTOR["factory_gqamean_kept"][0, head]) for head, cols in enumerate(held(cache)))


def naive(q: Tensor, k: Tensor, prompt: int, steps: int, keep: int, recent: int) -> list[list[list[int]]]:
    """Kept columns per step and key head, from the equations: attention summed over queries, greedy, in loops."""
    q, k = q.double(), k.double()
    heads, group = k.shape[0], q.shape[0] // k.shape[0]
    kept = [list(range(prompt)) for _ in range(heads)]
    mass = [dict.fromkeys(range(prompt), 0.0) for _ in range(heads)]
    history = []
    for end in range(prompt, prompt + steps + 1):
        queries = range(prompt) if end == prompt else [end - 1]
        for head in range(heads):
            if end > prompt:
                kept[head].append(end - 1)
                mass[head][end - 1] = 0.0
            for query in queries:
                seen = [c for c in kept[head] if c <= query]
                for member in range(group):
                    logits = q[head * group + member, query] @ k[head, seen].T / q.shape[-1] ** 0.5
                    for column, share in zip(seen, logits.softmax(0).tolist(), strict=True):
                        mass[head][column] += share / group
            if len(kept[head]) > keep:
                old, new = kept[head][:-recent], kept[head][-recent:]
                heavy = sorted(old, key=lambda c: -mass[head][c])[: keep - recent]
                kept[head] = sorted(heavy) + new
        history.append([list(cols) for cols in kept])
    return history


@pytest.mark.parametrize("pads", [0, 9])
def test_naive_reference(pads: int) -> None:
    q, k = VECTOR["q"][0, :, :48], VECTOR["k"][0, :2, :48]
    recorded = Recorded(q, k)
    with tithe.on(recorded.model, "h2o", keep=10, level="history") as run:
        recorded.play(24, 24, pads)
    wanted = naive(q, k, 24, 24, 10, 5)
    for event, heads in zip(run.trace.history, wanted, strict=True):
        cols = event.cols.expand(1, 2, -1)[0] - pads
        assert [cols[h][event.keep[0, h]].tolist() for h in range(2)] == heads


def test_contract() -> None:
    contract("h2o")
    does_not_compound("h2o")


def test_half_is_recent_and_memory_stays_fixed() -> None:
    with tithe.on(model(), "h2o", keep=10, level="kept") as run:
        model().generate(**padded(), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
    for event in run.trace.events:
        assert event.heads_kept == ((10, 10), (10, 10))
        newest = event.cols.expand_as(event.keep)[event.keep].view(2, 2, 10)[..., -5:]
        assert torch.equal(newest, torch.arange(event.end - 5, event.end).expand(2, 2, 5).int())
