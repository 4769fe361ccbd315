"""Canvases are deterministic, split without leaks, and labels, questions and masks say what is drawn."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from tithe.bench.tasks import canvas

SEEDS = range(40)


def hue(image: canvas.Image, mask: NDArray[np.bool_]) -> int:
    """Index of the palette colour nearest to the brightest pixel under a patch mask."""
    pixels = image[mask.repeat(canvas.PATCH, 0).repeat(canvas.PATCH, 1)].astype(float)
    brightest = pixels[pixels.sum(1).argmax()]
    palette = np.array(list(canvas.COLOURS.values()))
    return int(((palette - brightest / brightest.max()) ** 2).sum(1).argmin())


def quarter(quadrant: int) -> NDArray[np.bool_]:
    mask = np.zeros((canvas.GRID, canvas.GRID), np.bool_)
    row, col = np.array(divmod(quadrant, 2)) * (canvas.GRID // 2)
    mask[row : row + canvas.GRID // 2, col : col + canvas.GRID // 2] = True
    return mask


def quadrants(mask: NDArray[np.bool_]) -> set[int]:
    rows, cols = np.nonzero(mask)
    half = canvas.GRID // 2
    return {int(q) for q in rows // half * 2 + cols // half}


@pytest.mark.parametrize("split", get_args(canvas.Split))
def test_same_seed_same_case(split: canvas.Split) -> None:
    for seed in range(5):
        first, again = canvas.vqa_case(seed, split), canvas.vqa_case(seed, split)
        assert np.array_equal(first.image, again.image)
        assert first[1:3] == again[1:3]
        assert not np.array_equal(first.image, canvas.vqa_case(seed + 1, split).image)
        assert np.array_equal(canvas.digits_case(seed, split).image, canvas.digits_case(seed, split).image)


def test_splits_share_no_digit() -> None:
    with (files("tithe") / "zoo" / "digits.npz").open("rb") as file:
        archive: Any = np.load(file)
        images, labels = archive["images"], archive["labels"]
    assert images.shape == (1797, 8, 8) and images.max() == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pools = {split: np.concatenate(canvas.digit_pools(split)) for split in get_args(canvas.Split)}
    assert {split: len(pool) for split, pool in pools.items()} == {"train": 1438, "test": 359}
    assert not {x.tobytes() for x in pools["train"]} & {x.tobytes() for x in pools["test"]}


@pytest.mark.parametrize("seed", SEEDS)
def test_digits_case(seed: int) -> None:
    case = canvas.digits_case(seed, "test")
    assert case.image.shape == (canvas.SIDE, canvas.SIDE, 3) and case.image.dtype == np.uint8
    assert case.labels.shape == (4,)
    occupied = set(np.flatnonzero(case.labels != canvas.EMPTY).tolist())
    assert 2 <= len(occupied) <= 4
    assert quadrants(case.digits) == occupied
    assert case.digits.sum() == 4 * len(occupied)


def test_every_digit_and_quadrant_occurs_about_equally() -> None:
    labels = np.stack([canvas.digits_case(seed, "train").labels for seed in range(600)])
    shares = np.bincount(labels[labels != canvas.EMPTY], minlength=10) / (labels != canvas.EMPTY).sum()
    assert shares.min() > 0.07 and shares.max() < 0.13
    assert np.abs((labels != canvas.EMPTY).mean(0) - 0.75).max() < 0.06


@pytest.mark.parametrize("kind", canvas.KINDS)
def test_the_question_is_about_what_is_drawn(kind: canvas.Kind) -> None:
    for seed in SEEDS:
        case = canvas.vqa_case(seed, "train", kind)
        assert case.relevant.sum() == (8 if kind == "beside" else 4)
        assert not (case.relevant & ~case.digits).any()
        about = sorted(quadrants(case.relevant))
        assert about in ([[0, 1], [2, 3]] if kind == "beside" else [[0], [1], [2], [3]])
        named = {case.question.split()[-1], case.answer}
        shown = {canvas.COLOUR_NAMES[hue(case.image, case.relevant & quarter(q))] for q in about}
        assert named & set(canvas.COLOUR_NAMES) <= shown
        assert named & set(canvas.QUADRANTS) <= {canvas.QUADRANTS[q] for q in about}


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_have_one_answer(seed: int) -> None:
    drawn = canvas.scene(np.random.default_rng(seed), "train")
    for field in ("quadrant", "digit", "colour"):
        values = [getattr(cell, field) for cell in drawn.cells]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_patches_and_quadrants_agree(seed: int) -> None:
    drawn = canvas.scene(np.random.default_rng(seed), "test")
    digits, colours = canvas.patch_labels(drawn)
    assert np.array_equal(digits != canvas.EMPTY, canvas.patch_mask(drawn.cells))
    assert np.array_equal(colours != len(canvas.COLOURS), canvas.patch_mask(drawn.cells))
    for quadrant, digit in enumerate(canvas.quadrant_labels(drawn)):
        row, col = divmod(quadrant, 2)
        half = canvas.GRID // 2
        part = digits[row * half : (row + 1) * half, col * half : (col + 1) * half]
        assert set(part[part != canvas.EMPTY].tolist()) == (set() if digit == canvas.EMPTY else {int(digit)})


def test_one_hop_is_the_default() -> None:
    assert not any("beside" in canvas.vqa_case(seed, "train").question for seed in range(200))


def test_beside_needs_a_pair() -> None:
    rng = np.random.default_rng(0)
    drawn = canvas.scene(rng, "train")
    lone = canvas.Scene(drawn.image, drawn.cells[:1])
    with pytest.raises(ValueError, match="side by side"):
        canvas.ask(rng, lone, "beside")


def test_unknown_names_are_refused() -> None:
    wrong: Any = "validation"
    with pytest.raises(ValueError, match="split='validation'; one of train, test"):
        canvas.digits_case(0, wrong)
    with pytest.raises(ValueError, match="split='validation'"):
        canvas.vqa_case(0, wrong)
    with pytest.raises(ValueError, match="kind='validation'; one of digit-at"):
        canvas.vqa_case(0, "train", wrong)
