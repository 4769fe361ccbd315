"""Constraints: what they ask, and what they make of a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tithe.bench.rows import Row
from tithe.errors import BadInput
from tithe.pick.constraints import Constraints, cost, drop, fitting

ROW = Row(
    "m", "needle", "snapkv", 0.5, 0.9, 1.0, 10, 20, 50, 60, 100, 400, 500, 0.8, None, "real", 16, 0, "inside",
    low=-0.15, high=-0.02,
)  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({"max_drop": 0.1}, 0.0),
        ({"max_drop": 0.04}, 0.06),
        ({"max_drop": 0.1, "max_kv": 60}, 0.0),
        ({"max_drop": 0.1, "max_kv": 40}, 0.5),
        ({"max_drop": 0.1, "max_prefill_ratio": 0.4}, 1.0),
        ({"max_drop": 0.1, "max_decode_ratio": 0.4}, 0.0),
    ],
)
def test_what_is_missed(limits: dict[str, Any], missed: float) -> None:
    assert Constraints(**limits).violation(ROW) == pytest.approx(missed)


def test_what_was_not_measured_is_not_satisfied_in_the_end() -> None:
    assert Constraints(0.1, max_decode_ratio=0.4).violation(ROW, whole=True) == float("inf")


def test_intervals() -> None:
    assert Constraints(0.2).sure(ROW) and not Constraints(0.1).sure(ROW)
    assert Constraints(0.01).hopeless(ROW) and not Constraints(0.03).hopeless(ROW)
    assert Constraints(0.2, max_kv=59).hopeless(ROW)
    assert not Constraints(0.2).sure(replace(ROW, low=None)) and not Constraints(0.0).hopeless(replace(ROW, high=None))


def test_costs_are_shares_of_the_untouched_model() -> None:
    assert (cost(ROW, "kv"), cost(ROW, "flops"), cost(ROW, "prefill")) == (0.6, 0.8, 0.8)
    assert cost(ROW, "decode") == float("inf") and drop(ROW) == pytest.approx(0.1)
    assert (fitting(None, "llm"), fitting(None, "vit"), fitting("decode", "llm")) == ("kv", "flops", "decode")
    with pytest.raises(BadInput, match="Did you mean 'flops'"):
        fitting("flop", "llm")


@pytest.mark.parametrize(
    "limits", [{"max_drop": -1}, {"max_drop": float("nan")}, {"max_kv": 0}, {"max_prefill_ratio": -1}]
)
def test_limits_out_of_range(limits: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="out of range"):
        Constraints(**limits)
