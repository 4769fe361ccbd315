from __future__ import annotations

import pytest
import torch
from methods.context.contract import contract, does_not_compound, model, padded
from methods.context.recorded import Recorded, held, same_set, vector

import tithe

VECTOR, _ = vector("streaming-llm")


def blank(length: int) -> Recorded:
    return Recorded(torch.zeros(1, length, 4), torch.zeros(1, length, 4))


@pytest.mark.parametrize("length", [10, 16, 17, 40])
def test_prompt_like_the_authors(length: int) -> None:
    recorded = blank(length + 1)
    with tithe.on(recorded.model, "streaming-llm", keep=16, sink=4) as run:
        cache = recorded.play(length)
        run.end_prefill()
    assert same_set(held(cache)[0], VECTOR[f"call_{length}"])


def test_every_step_like_the_authors() -> None:
    recorded = blank(51)
    with tithe.on(recorded.model, "streaming-llm", keep=16, sink=4) as run:
        for step in range(31):
            cache = recorded.play(20, step)
            if not step:
                run.end_prefill()
            assert same_set(held(cache)[0], VECTOR["stream_kept"][step]), step


def test_sinks_survive_a_thousand_compressions() -> None:
    recorded = blank(1100)
    with tithe.on(recorded.model, "streaming-llm", keep=16, sink=4) as run:
        cache = recorded.play(20, 1050)
        assert {event.fired for event in run.trace.events if event.phase == "decode"} == {1050}
    assert held(cache) == [[0, 1, 2, 3, *range(1058, 1070)]]
    assert cache.layers[0].allocated() < 16 * 20 * 4 * 2 * 4


def test_left_padding_does_not_take_the_sinks() -> None:
    recorded = blank(60)
    with tithe.on(recorded.model, "streaming-llm", keep=16, sink=4):
        cache = recorded.play(30, 10, pads=7)
    assert held(cache) == [[7, 8, 9, 10, *range(35, 47)]]


def test_contract() -> None:
    contract("streaming-llm", sink=2)
    does_not_compound("streaming-llm")


def test_memory_stays_fixed_while_generating() -> None:
    with tithe.on(model(), "streaming-llm", keep=12, sink=4) as run:
        model().generate(**padded(), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0)
        assert all(event.heads_kept == ((12,), (12,)) for event in run.trace.events)
        assert run.report().kv_live == 2 * 12 * 3 * 2 * 2 * 16 * 4
