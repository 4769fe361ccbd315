from __future__ import annotations

import pytest
import torch
from methods.context.contract import contract, model, padded
from methods.context.recorded import Recorded, vector
from torch import Tensor

import tithe
from tithe.errors import BadInput

VECTOR, _ = vector("h2o")


def naive(
    q: Tensor, k: Tensor, prompt: int, steps: int, keep: int, recent: int, window: int, drop: float
) -> list[list[list[int]]]:
    """Kept columns per step and key head, from the paper's counter, in loops and float64."""
    q, k = q.double(), k.double()
    heads, group = k.shape[0], q.shape[0] // k.shape[0]
    kept = [list(range(prompt)) for _ in range(heads)]
    missed = [dict.fromkeys(range(prompt), 0) for _ in range(heads)]
    history = []
    for end in range(prompt, prompt + steps + 1):
        first = end == prompt
        for head in range(heads):
            if not first:
                kept[head].append(end - 1)
                missed[head][end - 1] = 0
            for query in range(max(0, prompt - window), prompt) if first else [end - 1]:
                seen = [c for c in kept[head] if c <= query]
                share = torch.zeros(len(seen), dtype=torch.float64)
                for member in range(head * group, head * group + group):
                    share += (q[member, query] @ k[head, seen].T / q.shape[-1] ** 0.5).softmax(0) / group
                for column, part in zip(seen, share.tolist(), strict=True):
                    missed[head][column] += part < 1 / len(seen)
            if len(kept[head]) > keep:
                left = max(keep - int(keep * drop), recent)
                old, new = kept[head][:-recent], kept[head][-recent:]
                kept[head] = sorted(sorted(old, key=lambda c: (missed[head][c], c))[: left - recent]) + new
                missed[head] = dict.fromkeys(kept[head], 0)
            elif first:
                missed[head] = dict.fromkeys(kept[head], 0)
        history.append([list(cols) for cols in kept])
    return history


CASES = [(16, 4, 10, 0.5), (12, 3, 400, 0.25), (20, 2, 6, 0.0), (40, 4, 8, 0.5), (16, 12, 10, 0.5)]


@pytest.mark.parametrize(("keep", "recent", "window", "drop"), CASES)
@pytest.mark.parametrize("pads", [0, 9])
def test_naive_reference(keep: int, recent: int, window: int, drop: float, pads: int) -> None:
    q, k = VECTOR["q"][0, :, :72], VECTOR["k"][0, :2, :72]
    recorded = Recorded(q, k)
    params = {"keep": keep, "recent": recent, "window": window, "drop": drop}
    with tithe.on(recorded.model, "scissorhands", level="history", **params) as run:
        recorded.play(24, 48, pads)
    wanted = naive(q, k, 24, 48, keep, recent, window, drop)
    assert sum(sum(event.kept) < sum(event.seen) for event in run.trace.history) > 0
    for event, heads in zip(run.trace.history, wanted, strict=True):
        shape = (1, 2, event.keep.shape[2])
        cols, kept = event.cols.expand(shape)[0] - pads, event.keep.expand(shape)[0]
        assert [cols[head][kept[head]].tolist() for head in range(2)] == heads


def test_contract() -> None:
    contract("scissorhands", recent=3, window=8)


def test_a_head_fills_up_and_is_cut_to_half() -> None:
    with tithe.on(model(), "scissorhands", keep=12, recent=3, level="history") as run:
        model().generate(**padded(), max_new_tokens=16, min_new_tokens=16, do_sample=False, pad_token_id=0)
    counts = [event.heads_kept for event in run.trace.history if event.layer == 1]
    assert counts == [((n, n), (n, n)) for n in (6, 7, 8, 9, 10, 11, 12, 6, 7, 8, 9, 10, 11, 12, 6, 7)]


def test_drop_is_a_share() -> None:
    with pytest.raises(BadInput, match="drop=1"):
        tithe.method("scissorhands", drop=1)
