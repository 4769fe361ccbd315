"""A value of the wrong kind, or far out of range, is refused in one line by every parameter of every method."""

from __future__ import annotations

from typing import Any

import pytest
from canonical import host

import tithe
from benchmarks.untouched import changes, state
from tithe.errors import BadInput, TitheError

WRONG: list[Any] = [
    "abc", "", b"x", -1, -0.5, 0, 2.5, 1e-9, 10**9, float("nan"), float("inf"), None, True, (), (1, 2), ("a",), [1],
    {}, object(),
]  # fmt: skip


@pytest.mark.parametrize("slug", tithe.factories())
def test_wrong_values_are_refused_in_one_line(slug: str) -> None:
    factory = tithe.factories()[slug]
    model, _ = host(factory.card.hosts[0])
    before = state(model)
    refused = 0
    for name in factory.parameters:
        for value in WRONG:
            try:
                with tithe.on(model, tithe.method(slug, **{name: value})):
                    pass
            except TitheError as error:
                refused += 1
                assert str(error) and "\n" not in str(error), (name, value)
    assert refused >= len(factory.parameters)
    assert not changes(before, state(model))


def test_the_value_is_shown() -> None:
    with pytest.raises(BadInput, match=r"xl3m: one of window='abc' is of the wrong kind or out of range: unsupported"):
        tithe.method("xl3m", window="abc")
    with pytest.raises(BadInput, match=r"layer=nan.*cannot convert float NaN to integer"):
        tithe.on(host("vlm")[0], tithe.method("visionzip", layer=float("nan")))
