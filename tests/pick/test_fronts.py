"""Fronts against their definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tithe.pick.fronts import dominates, front, layered

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=14)


@given(POINTS)
def test_the_front_is_what_none_dominates(points: list[tuple[float, float]]) -> None:
    found = front(points)
    kept = {points[at] for at in found}
    assert kept == {one for one in points if not any(dominates(other, one) for other in points)}
    assert len(kept) == len(found) and [points[at][1] for at in found] == sorted(points[at][1] for at in found)


@given(POINTS)
def test_layers_hold_every_place_once_and_dominators_first(points: list[tuple[float, float]]) -> None:
    order = layered(points)
    assert sorted(order) == list(range(len(points)))
    for at, place in enumerate(order):
        assert not any(dominates(points[later], points[place]) for later in order[at + 1 :])
