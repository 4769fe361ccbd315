"""Coherence: repetition against the authors' numbers, and planted texts told apart."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from tithe.bench.coherence import coherent_nats, distinct, longest_run, rep, repeats, seq_rep

VECTOR = Path(__file__).parents[1] / "vectors" / "coherence.npz"


def test_repetition_is_what_the_authors_code_counts() -> None:
    with np.load(VECTOR) as file:
        ids, wanted, within = file["ids"].tolist(), file["seq_rep"], file["rep"]
    mine = [[seq_rep(row, n) for n in (1, 2, 3, 4)] for row in ids]
    assert np.allclose(mine, wanted, atol=1e-12) and np.ptp(wanted) > 0.9
    assert np.allclose([[rep(row, k) for k in (16, 32, 128)] for row in ids], within, atol=1e-12)


def test_short_texts() -> None:
    assert (
        seq_rep([1, 2, 3]) == seq_rep([]) == rep([]) == distinct([]) == 0 and longest_run([]) == longest_run([1]) == 0
    )
    assert repeats([1, 1, 1], 1) == [False, True, True] and repeats([7, 8, 7, 8], 2) == [False, False, False, True]


def test_distinct_counts_bigrams_over_tokens() -> None:
    assert distinct([1, 2, 3, 4]) == 0.75 and distinct([5] * 10) == 0.1 and distinct([1, 2, 3], 1) == 1


@pytest.mark.parametrize("seed", range(4))
def test_longest_run_is_the_longest_repeated_stretch(seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 3 + 5 * seed, 60).tolist()
    naive = max(
        size
        for late in range(1, 60)
        for early in range(late)
        for size in range(60 - late + 1)
        if ids[late : late + size] == ids[early : early + size]
    )
    assert longest_run(ids) == naive
    planted = [*range(100, 120), *ids, *range(100, 120)]
    assert longest_run(planted) >= 20
    assert SequenceMatcher(None, planted[:20], planted[-20:]).ratio() == 1


def test_a_loop_is_charged_and_a_text_without_one_is_not() -> None:
    nats = [2.0] * 12
    assert coherent_nats(nats, range(12), 7.0) == 2
    loop = [1, 2, 3, 4] * 3
    assert coherent_nats(nats, loop, 7.0) == pytest.approx((7 * 2.0 + 5 * 7.0) / 12)
    assert sum(repeats(loop)) == 5 and coherent_nats([9.0] * 12, loop, 7.0) == 9
    with pytest.raises(ValueError, match="stand against"):
        coherent_nats([], [], 7.0)
