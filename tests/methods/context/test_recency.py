from __future__ import annotations

from methods.context.contract import contract, does_not_compound, generate, kept_sets, padded


def test_contract() -> None:
    contract("recency")
    does_not_compound("recency")


def test_the_last_of_every_row_stay() -> None:
    _, events = generate("recency", padded(), keep=0.3)
    for row, (count, start) in enumerate(((12, 0), (8, 11))):
        assert all(cols == list(range(40 - count, 40)) for heads in kept_sets(events, row) for cols in heads)
        sinks = kept_sets(generate("recency", padded(), keep=0.3, sink=2)[1], row)
        assert all(cols == [start, start + 1, *range(42 - count, 40)] for heads in sinks for cols in heads)
