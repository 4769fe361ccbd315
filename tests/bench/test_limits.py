"""Effective context limits, beside plain loops and beside the contours that the authors drew."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tithe.bench.limits import contour, effective_limit, of_rows, smoothed
from tithe.errors import BadInput

VECTORS = Path(__file__).parents[1] / "vectors" / "needle-threading.npz"


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    with np.load(VECTORS) as file:
        return {name: file[name] for name in file.files}


def naive_smoothed(scores: list[list[float]], sigma: float) -> list[list[float]]:
    """Sum over mirrored neighbours, cell by cell."""
    rows, cols, reach = len(scores), len(scores[0]), int(4 * sigma + 0.5)

    def mirrored(place: int, size: int) -> int:
        place %= 2 * size
        return place if place < size else 2 * size - 1 - place

    def weight(step: int) -> float:
        return math.exp(-step * step / (2 * sigma * sigma))

    total = sum(weight(step) for step in range(-reach, reach + 1))
    return [
        [
            sum(
                weight(down) * weight(right) * scores[mirrored(row + down, rows)][mirrored(col + right, cols)]
                for down in range(-reach, reach + 1)
                for right in range(-reach, reach + 1)
            )
            / total**2
            for col in range(cols)
        ]
        for row in range(rows)
    ]


def test_smoothing_is_the_sum_over_mirrored_neighbours() -> None:
    scores = np.random.default_rng(1).random((7, 4))
    for sigma in (0.6, 1.5, 2.3):
        assert np.allclose(smoothed(scores, sigma), naive_smoothed(scores.tolist(), sigma), atol=1e-12)
    assert np.array_equal(smoothed(scores, 0), scores)


def test_smoothing_is_scipys(told: dict[str, Any]) -> None:
    assert json.loads(str(told["meta"]))["commit"].startswith("665f01e")
    for name in ("shared", "small"):
        assert np.allclose(smoothed(told[name]), told[f"{name}_smoothed"], atol=1e-14)


def test_contour_of_the_single_needle_is_the_authors(told: dict[str, Any]) -> None:
    drawn = {round(float(depth), 3): float(characters) for depth, characters in told["vertices"]}
    ours = dict(zip(told["depths"], contour(told["lengths"], told["scores_gemini_1.5_flash"]), strict=True))
    shared = [depth for depth in ours if depth in drawn]
    assert len(shared) == 9
    for depth in shared:
        assert ours[depth] == pytest.approx(drawn[depth], rel=1e-7)


def test_limit_between_depths_is_where_their_contour_crosses_a_length(told: dict[str, Any]) -> None:
    between = [(depth, size) for depth, size in told["vertices"] if abs(depth / 10 - round(depth / 10)) > 1e-4]
    assert len(between) == 4
    for depth, size in between:
        got = effective_limit(told["lengths"], told["depths"], told["scores_gemini_1.5_flash"], at=depth)
        assert got == pytest.approx(size, rel=1e-6)


def test_contour_of_many_needles_is_the_authors_as_far_as_colours_tell(told: dict[str, Any]) -> None:
    ours = contour(told["lengths"], told["multi_scores"])
    for needles, size in zip(told["needles"], ours, strict=True):
        near = [float(drawn) for count, drawn in told["multi_vertices"] if abs(count - needles) < 1e-3]
        assert near == pytest.approx([size], rel=4e-3)


@pytest.mark.parametrize("model", ["gpt-4o", "claude_3.5_sonnet", "gpt-4o_mini"])
def test_models_whose_contour_they_drew_at_the_limit_reach_it(told: dict[str, Any], model: str) -> None:
    scores = told[f"scores_{model}"]
    lengths = told["lengths"][: len(scores)]
    assert effective_limit(lengths, told["depths"], scores) == lengths[-1]


def test_without_their_smoothing_one_bad_cell_would_be_the_limit(told: dict[str, Any]) -> None:
    scores, lengths = told["scores_gpt-4o_mini"], told["lengths"][:8]
    assert effective_limit(lengths, told["depths"], scores, smoothing=0) < lengths[-1]


def test_limit_is_the_worst_depth_or_the_one_asked_for() -> None:
    lengths, depths, scores = [100, 200, 400], [0, 1], [[1, 1], [1, 0.5], [0.5, 0]]
    assert contour(lengths, scores, smoothing=0).tolist() == [300, 150]
    assert effective_limit(lengths, depths, scores, smoothing=0) == 150
    assert effective_limit(lengths, depths, scores, smoothing=0, at=0) == 300
    assert effective_limit(lengths, depths, scores, smoothing=0, at=0.5) == 200
    assert effective_limit(lengths, depths, scores, threshold=0.5, smoothing=0) == 200
    assert effective_limit(lengths, depths, [[0.7, 1], [1, 1], [1, 1]], smoothing=0) == 0
    assert effective_limit(lengths, depths, np.ones((3, 2))) == 400
    assert effective_limit([100], [0], [[0.8]]) == 100


def test_a_score_that_recovers_does_not_count_again() -> None:
    assert effective_limit([1, 2, 3, 4], [0], [[1], [0.5], [1], [1]], smoothing=0) == 1.5


@pytest.mark.parametrize(
    ("lengths", "depths", "scores", "more"),
    [
        ([2, 1], [0], [[1], [1]], {}),
        ([], [0], np.ones((0, 1)), {}),
        ([1, 2], [0], [[1]], {}),
        ([1, 2], [0, 0], np.ones((2, 2)), {}),
        ([1, 2], [0], [[1], [math.nan]], {}),
        ([1, 2], [0], [[1], [1]], {"threshold": 0}),
        ([1, 2], [0], [[1], [1]], {"at": 0.5}),
    ],
)
def test_what_has_no_limit_is_refused(lengths: Any, depths: Any, scores: Any, more: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        effective_limit(lengths, depths, scores, **more)


def row(length: int, quality: float, method: str = "snapkv", **more: Any) -> dict[str, Any]:
    place = {"model": "zoo:reader", "task": "threading", "method": method, "keep": 0.25, "question": "after"}
    return {**place, "length": length, "quality": quality, **more}


def test_rows_of_a_benchmark_give_a_limit_for_each_line() -> None:
    rows = [
        row(512, 0.5, characters=2500.0),
        row(256, 1.0, characters=1200.0),
        row(256, 1.0, "h2o"),
        row(512, 0.9, "h2o"),
    ]
    found = of_rows(rows, smoothing=0)
    assert len(found) == 2
    one, other = found.values()
    assert (one.tokens, one.characters, one.reached) == (384, 1850, True)
    assert (other.tokens, other.characters, other.reached) == (512, None, False)


def test_rows_at_few_lengths_are_not_smoothed_unless_asked() -> None:
    rows = [row(100, 1.0), row(200, 0.0)]
    assert [limit.tokens for limit in of_rows(rows).values()] == [125]
    assert [limit.tokens for limit in of_rows(rows, smoothing=1.5).values()] == [0]


def test_rows_with_depths_count_the_worst_depth() -> None:
    near, far = ((0.1, 1.0, 8), (0.9, 1.0, 8)), ((0.1, 0.25, 8), (0.9, 1.0, 8))
    rows = [row(100, 1.0, by_depth=near), row(200, 0.625, by_depth=far)]
    (limit,) = of_rows(rows, by_depth=True).values()
    assert limit.tokens == pytest.approx(100 + 100 / 3)
    (plain,) = of_rows(rows).values()
    assert plain.tokens == pytest.approx(100 + 100 * 0.25 / 0.375)
    for other in ((), near[:1]):
        with pytest.raises(BadInput, match="same depths"):
            of_rows([rows[0], {**rows[1], "by_depth": other}], by_depth=True)


def test_rows_at_one_length_or_twice_at_one_are_refused() -> None:
    for rows in ([row(100, 1.0)], [row(100, 1.0), row(100, 0.5)], [row(100, 1.0), {**row(200, 1.0), "length": None}]):
        with pytest.raises(BadInput, match="two lengths"):
            of_rows(rows)
