"""Writing: what was written is judged by the untouched model; loops and babble come out worse than healthy text."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import tithe
from tithe.bench.ask import untouched
from tithe.bench.coherence import coherent_nats, seq_rep
from tithe.bench.prompt import from_ids
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.lm import lm_windows
from tithe.bench.tasks.writing import WRITING, Writing, losses, write
from tithe.errors import BadInput
from tithe.zoo import Loaded

SETTING = Setting(n=6, length=256)
SHORT = Writing(written=32)


@pytest.fixture(scope="module")
def window(llm: Loaded) -> tuple[int, ...]:
    return tuple(lm_windows(llm.processor, 320, 1, seed=3)[0].tolist())


@torch.no_grad()
def test_losses_are_those_of_one_forward(llm: Loaded, window: tuple[int, ...]) -> None:
    mine = losses(llm.model, window[:200], window[200:])
    logs = torch.log_softmax(llm.model(torch.tensor([window])).logits[0].double(), -1)
    naive = [-logs[place - 1, window[place]].item() for place in range(200, 320)]
    assert mine == pytest.approx(naive, abs=1e-4) and len(mine) == 120


def test_planted_loops_and_babble_are_worse_than_real_text(llm: Loaded, window: tuple[int, ...]) -> None:
    context, real = window[:200], list(window[200:])
    blind = math.log(llm.model.config.vocab_size)
    babble = np.random.default_rng(0).integers(5, 2048, 120).tolist()
    told = {**from_ids(llm.model, context), "max_new_tokens": 120, "min_new_tokens": 120, "do_sample": False}
    loop = llm.model.generate(**told)[0, 200:].tolist()
    price, plain = {}, {}
    for name, text in (("real", real), ("babble", babble), ("loop", loop)):
        nats = losses(llm.model, context, text)
        price[name], plain[name] = coherent_nats(nats, text, blind), sum(nats) / len(nats)
    assert price["real"] + 1 < min(price["babble"], price["loop"])
    # The loss alone takes the loop for the best text, and repetition alone the babble.
    assert plain["loop"] < plain["real"] and seq_rep(babble) < seq_rep(real) < 0.4 < 0.7 < seq_rep(loop)


def test_writing_is_drawn_from_the_seed_and_leaves_the_random_state(llm: Loaded, window: tuple[int, ...]) -> None:
    inputs = from_ids(llm.model, window[:100])
    before = torch.get_rng_state()
    one, logs, cost = write(llm.model, inputs, untouched, 20, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert (
        one == write(llm.model, inputs, untouched, 20, seed=1)[0] != write(llm.model, inputs, untouched, 20, seed=2)[0]
    )
    assert len(one) == 20 and logs.shape == (16, llm.model.config.vocab_size) and cost.kv_bytes
    whole = partial(tithe.on, llm.model, "snapkv", keep=1.0)
    assert write(llm.model, inputs, whole, 20, seed=1)[0] == one


def test_quality_columns_and_cost(llm: Loaded) -> None:
    full = SHORT.mark(llm, untouched, SETTING, range(6))
    few = SHORT.mark(llm, partial(tithe.on, llm.model, "random", keep=1), SETTING, range(6))
    for one in (*full, *few):
        assert set(one.extras) == {"repeated", "distinct", "longest_run", "own_nats"} and len(one.ids[0]) == 32
        assert one.quality <= -one.extras["own_nats"] + 1e-9
        if one.extras["repeated"] == 0:
            assert one.quality == pytest.approx(-one.extras["own_nats"])
    # Both read the whole context once, and draw the first token from it with the same seed.
    assert all(a.ids[0][0] == b.ids[0][0] and a.ids != b.ids for a, b in zip(full, few, strict=True))
    assert sum(one.quality for one in few) < sum(one.quality for one in full) - 1
    assert all(one.figures.kv_bytes < other.figures.kv_bytes for one, other in zip(few, full, strict=True))
    assert [one.case for one in full] == [*range(6)] and SHORT.mark(llm, untouched, SETTING, [1])[0].ids == full[1].ids


def test_a_context_too_long_is_refused_before_anything_ran(llm: Loaded) -> None:
    with pytest.raises(BadInput, match="beyond the model's window"):
        WRITING.check(llm, Setting(length=2048))
    with pytest.raises(BadInput, match="length=1"):
        WRITING.check(llm, Setting(length=1))
