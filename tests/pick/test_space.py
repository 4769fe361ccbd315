"""What there is to choose from."""

from __future__ import annotations

import pytest

from tithe.errors import BadInput
from tithe.pick.space import Candidate, beside, candidates


def test_every_method_at_every_budget_it_can_have() -> None:
    found = candidates(["snapkv", "kivi", "snapkv:window=8"], (0.5, 16), "llm")
    # 16 tokens are fewer than the window of 32 that snapkv protects.
    assert found == [
        Candidate("snapkv", 0.5),
        Candidate("kivi", None),
        Candidate("snapkv:window=8", 0.5),
        Candidate("snapkv:window=8", 16),
    ]
    everything = {one.label for one in candidates([], (0.25,), "llm")}
    assert {"snapkv", "adakv", "quest", "kivi", "random"} <= everything and "fastv" not in everything


def test_neighbours_differ_in_one_parameter() -> None:
    found = list(beside(Candidate("snapkv", 0.5)))
    labels = {one.label for one in found}
    assert {"snapkv:window=16", "snapkv:window=64", "snapkv:kernel=3", "snapkv:ragged=True"} <= labels
    assert "snapkv:share='entropy'" in labels and "snapkv:kernel=5" not in labels
    assert all(one.keep == 0.5 and len(one.label.split(":")) == 2 for one in found)
    assert {one.label for one in beside(Candidate("kivi", None))} >= {"kivi:bits=4"}
    # What is given stays, and what lies beside it is counted from there.
    assert "snapkv:window=4:kernel=3" in {one.label for one in beside(Candidate("snapkv:window=4", 0.5))}
    assert not list(beside(Candidate("snapkv+kivi", 0.5)))


def test_neighbours_that_cannot_be_are_left_out() -> None:
    # A window of 64 protects more than 48 tokens.
    assert "snapkv:window=64" not in {one.label for one in beside(Candidate("snapkv", 48))}


def test_a_named_method_that_can_never_be_is_refused() -> None:
    with pytest.raises(BadInput, match="bits"):
        candidates(["kivi:bits=77"], (0.5,), "llm")
