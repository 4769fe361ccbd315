"""Ratios: pairs taken in turns, and their median."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tithe.bench import timing
from tithe.bench.ask import untouched
from tithe.bench.timing import Times, ratios
from tithe.zoo import Loaded


def attach() -> Any:
    return nullcontext()


def test_ratios_are_medians_of_pairs_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = iter([Times(9, 9), Times(1, 1), Times(10, 2), Times(2, 1)])
    mine = iter([Times(9, 9), Times(2, 3, 1, 0.5), Times(15, 4, 3, 0.1), Times(2, 1, 0.5, 0.3)])
    order: list[bool] = []

    def measure(model: Any, inputs: Any, how: Any, steps: int) -> Times:
        order.append(how is untouched)
        return next(plain if how is untouched else mine)

    monkeypatch.setattr(timing, "measure", measure)
    assert ratios(None, {}, attach, steps=4, repeat=3) == (1.5, 2, Times(2, 3, 1, 0.3))
    assert order == [True, False] * 4


def test_a_reading_counts_compression_and_a_step_does_not(llm: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward takes a second and every compression ten, by a clock of our own."""
    import tithe
    from tithe.bench.tasks.base import Setting
    from tithe.bench.tasks.needle import NEEDLE

    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(timing, "_now", lambda: now)
    fire = tithe.Run.end_of_prefill

    def slow(self: tithe.Run, cache: Any) -> None:
        spend(10)
        fire(self, cache)

    monkeypatch.setattr(tithe.Run, "end_of_prefill", slow)
    hook = llm.model.register_forward_hook(lambda *_: spend(1))
    try:
        inputs = NEEDLE.sample(llm, Setting(n=1, length=128))
        assert timing.measure(llm.model, inputs, untouched, 3) == Times(1, 1)
        assert timing.measure(llm.model, inputs, lambda: tithe.on(llm.model, "snapkv", keep=0.5), 3) == Times(11, 1)
    finally:
        hook.remove()


def test_a_model_that_does_not_write_has_no_decode_time(vit: Loaded) -> None:
    from tithe.bench.tasks.base import Setting
    from tithe.bench.tasks.vision import DIGITS

    prefill, decode, seconds = ratios(vit.model, DIGITS.sample(vit, Setting(n=1)), attach, steps=0, repeat=3)
    assert prefill > 0 and decode is None
    assert seconds.prefill > 0 and seconds.decode is seconds.encode is seconds.select is None


def test_a_reading_falls_into_encoder_selection_and_text(vlm: Loaded) -> None:
    import tithe
    from tithe.bench.tasks.base import Setting
    from tithe.bench.tasks.vision import VQA

    inputs = VQA.sample(vlm, Setting(n=1))
    spent = timing.measure(vlm.model, inputs, lambda: tithe.on(vlm.model, "fastervlm", keep=0.25), 2)
    assert spent.encode is not None and spent.select is not None and spent.decode is not None
    assert min(spent.encode, spent.select, spent.text, spent.decode) > 0
    assert spent.encode + spent.select + spent.text == pytest.approx(spent.prefill)
    plain = timing.alone(vlm.model, inputs, lambda: tithe.Run(vlm.model, (), "counts", False), 2, 3)
    assert (
        plain[:2] == (1.0, 1.0)
        and plain.seconds.encode is not None
        and 0 < plain.seconds.encode < plain.seconds.prefill
    )
    assert timing.measure(vlm.model, inputs, untouched, 2).encode is None


def test_a_figure_that_is_missing_once_has_no_median() -> None:
    assert timing.middle([Times(1, 4, None, 2), Times(3, 2, 1, 2), Times(2, 9, 1, 5)]) == Times(2, 4, None, 2)


def test_a_small_model_gets_one_thread_for_the_time_being(vit: Loaded) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError), timing.one_thread_if_small(vit.model):
            assert torch.get_num_threads() == 1
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
