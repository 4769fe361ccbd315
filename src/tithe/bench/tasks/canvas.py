"""Canvases of handwritten digits, for the classifier and the vision-language model of the zoo.

A canvas is 48 x 48 pixels, 12 x 12 patches of 4. Two to four real 8 x 8 digits, each on exactly 2 x 2 patches
of a quadrant of its own and in a colour of its own, lie among noise and grey pieces of other digits. All is a
pure function of a seed; the train and test splits share no digit image (writers are not told apart).

Digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
(1998), doi:10.24432/C50P49, CC BY 4.0: the 1,797 images that scikit-learn ships, 17 grey levels.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]
Kind = Literal["digit-at", "colour-at", "digit-of", "colour-of", "where", "beside"]
Image: TypeAlias = NDArray[np.uint8]

SIDE, PATCH, DIGIT = 48, 4, 8
GRID = SIDE // PATCH
EMPTY = 10
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 1.0, 0.15),
    "blue": (0.25, 0.35, 1.0),
    "yellow": (1.0, 1.0, 0.1),
    "pink": (1.0, 0.2, 1.0),
    "cyan": (0.1, 1.0, 1.0),
}
COLOUR_NAMES = tuple(COLOURS)
THINGS = (*map(str, range(10)), *COLOUR_NAMES, *QUADRANTS)
ONE_HOP: tuple[Kind, ...] = ("digit-at", "colour-at", "digit-of", "colour-of", "where")
KINDS: tuple[Kind, ...] = get_args(Kind)

_SPLITS: tuple[Split, ...] = get_args(Split)
_FRAGMENTS, _NOISE = 8, 0.08


class Cell(NamedTuple):
    """One digit: what it is and the patch of its upper left corner."""

    quadrant: int
    digit: int
    colour: int
    row: int
    col: int


class Scene(NamedTuple):
    """A canvas, uint8 [48, 48, 3], and the digits on it."""

    image: Image
    cells: tuple[Cell, ...]


class Question(NamedTuple):
    """A question, its one-word answer, and the digits one has to see to answer it."""

    text: str
    answer: str
    cells: tuple[Cell, ...]


class DigitsCase(NamedTuple):
    """A canvas, uint8 [48, 48, 3], and the digit of each quadrant, int64 [4], `EMPTY` where there is none.

    `digits`: the patches on which digits lie, bool [12, 12].
    """

    image: Image
    labels: NDArray[np.int64]
    digits: NDArray[np.bool_]


class VqaCase(NamedTuple):
    """A canvas, uint8 [48, 48, 3], a question about it and its answer.

    `relevant`: the patches that tell the answer; `digits`: those on which any digit lies; bool [12, 12]. `shown`: which
    of `THINGS` are there.
    """

    image: Image
    question: str
    answer: str
    relevant: NDArray[np.bool_]
    digits: NDArray[np.bool_]
    shown: frozenset[str]


def digits_case(seed: int, split: Split) -> DigitsCase:
    """Name the digit of every quadrant; digits may repeat.

    Raises:
        ValueError: for an unknown split.
    """
    drawn = scene(generator(seed, split, 0), split, distinct=False)
    return DigitsCase(drawn.image, quadrant_labels(drawn), patch_mask(drawn.cells))


def vqa_case(seed: int, split: Split, kind: Kind | None = None) -> VqaCase:
    """Answer one question about a canvas.

    Args:
        kind: one of `KINDS`, by default any of `ONE_HOP`; `beside` needs two hops, a digit and its neighbour.

    Raises:
        ValueError: for an unknown split or kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r}; one of {', '.join(KINDS)}")
    rng = generator(seed, split, 1)
    asked: Kind = kind or ONE_HOP[rng.integers(len(ONE_HOP))]
    drawn = scene(rng, split)
    while asked == "beside" and not _neighbours(drawn):
        drawn = scene(rng, split)
    question = ask(rng, drawn, asked)
    masks = patch_mask(question.cells), patch_mask(drawn.cells)
    return VqaCase(drawn.image, question.text, question.answer, *masks, shown(drawn))


def scene(rng: np.random.Generator, split: Split, distinct: bool = True) -> Scene:
    """Draw a canvas; with `distinct`, no two of its digits have the same value."""
    pools = digit_pools(split)
    canvas = clutter(rng, split)
    count = int(rng.integers(2, 5))
    digits = rng.permutation(10)[:count] if distinct else rng.integers(0, 10, count)
    reach = GRID // 2 - DIGIT // PATCH + 1
    cells: list[Cell] = []
    for quadrant, digit, colour in zip(rng.permutation(4), digits, rng.permutation(len(COLOURS)), strict=False):
        corner = rng.integers(0, reach, 2) + np.array(divmod(int(quadrant), 2)) * (GRID // 2)
        cell = Cell(int(quadrant), int(digit), int(colour), int(corner[0]), int(corner[1]))
        pool = pools[cell.digit]
        ink = pool[rng.integers(len(pool))] * rng.uniform(0.8, 1.0)
        paste(canvas, ink, cell.row * PATCH, cell.col * PATCH, cell.colour)
        cells.append(cell)
    return Scene(finished(canvas), tuple(cells))


def ask(rng: np.random.Generator, drawn: Scene, kind: Kind) -> Question:
    """Ask about one digit of a canvas; the word asked about comes last, so that the question closes on it.

    Raises:
        ValueError: for `beside` on a canvas without two digits side by side.
    """
    if kind == "beside":
        return _ask_beside(rng, drawn)
    cell = drawn.cells[rng.integers(len(drawn.cells))]
    digit, colour, place = str(cell.digit), COLOUR_NAMES[cell.colour], QUADRANTS[cell.quadrant]
    if kind == "digit-at":
        text, answer = f"what digit is {place}", digit
    elif kind == "colour-at":
        text, answer = f"what colour is {place}", colour
    elif kind == "digit-of":
        text, answer = f"what digit is {colour}", digit
    elif kind == "colour-of":
        text, answer = f"what colour is {digit}", colour
    else:
        text, answer = f"where is {(digit, colour)[rng.integers(2)]}", place
    return Question(text, answer, (cell,))


@lru_cache(maxsize=2)
def digit_pools(split: Split) -> tuple[NDArray[np.float32], ...]:
    """The images of each digit, ten arrays [n, 8, 8] from 0 to 1; every fifth image is for test."""
    images, labels = _digits()
    held_out = np.arange(len(labels)) % 5 == 4
    mine = held_out if split == "test" else ~held_out
    return tuple(images[mine & (labels == digit)] for digit in range(10))


def quadrant_labels(drawn: Scene) -> NDArray[np.int64]:
    """The digit of each quadrant, int64 [4], `EMPTY` where there is none."""
    labels = np.full(4, EMPTY, np.int64)
    for cell in drawn.cells:
        labels[cell.quadrant] = cell.digit
    return labels


def patch_labels(drawn: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Digit and colour of every patch, int64 [12, 12]; `EMPTY` and `len(COLOURS)` on the background."""
    digits = np.full((GRID, GRID), EMPTY, np.int64)
    colours = np.full((GRID, GRID), len(COLOURS), np.int64)
    for cell in drawn.cells:
        digits[_patches(cell)] = cell.digit
        colours[_patches(cell)] = cell.colour
    return digits, colours


def shown(drawn: Scene) -> frozenset[str]:
    """Return which digits, colours and quadrants are there."""
    named = ((str(cell.digit), COLOUR_NAMES[cell.colour], QUADRANTS[cell.quadrant]) for cell in drawn.cells)
    return frozenset(name for names in named for name in names)


def patch_mask(cells: tuple[Cell, ...]) -> NDArray[np.bool_]:
    """The patches that these digits cover, bool [12, 12]."""
    mask = np.zeros((GRID, GRID), np.bool_)
    for cell in cells:
        mask[_patches(cell)] = True
    return mask


def _ask_beside(rng: np.random.Generator, drawn: Scene) -> Question:
    pairs = _neighbours(drawn)
    if not pairs:
        raise ValueError("kind='beside' needs two digits side by side on the canvas")
    cell, other = pairs[rng.integers(len(pairs))]
    name = (str(cell.digit), COLOUR_NAMES[cell.colour])[rng.integers(2)]
    what = int(rng.integers(2))
    answer = (str(other.digit), COLOUR_NAMES[other.colour])[what]
    return Question(f"what {('digit', 'colour')[what]} is beside {name}", answer, (cell, other))


def _neighbours(drawn: Scene) -> list[tuple[Cell, Cell]]:
    return [(a, b) for a in drawn.cells for b in drawn.cells if a.quadrant ^ 1 == b.quadrant]


def _patches(cell: Cell) -> tuple[slice, slice]:
    span = DIGIT // PATCH
    return slice(cell.row, cell.row + span), slice(cell.col, cell.col + span)


def generator(seed: int, split: Split, task: int) -> np.random.Generator:
    """The random numbers of one case of one task; splits and tasks share none."""
    if split not in _SPLITS:
        raise ValueError(f"split={split!r}; one of {', '.join(_SPLITS)}")
    return np.random.default_rng([seed, _SPLITS.index(split), task])


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with (files("tithe") / "zoo" / "digits.npz").open("rb") as file:
        archive: Any = np.load(file)
        return archive["images"].astype(np.float32) / 16, archive["labels"].astype(np.int64)


def clutter(rng: np.random.Generator, split: Split, side: int = SIDE, pieces: int = _FRAGMENTS) -> NDArray[np.float32]:
    """Noise and grey pieces of digits, float [side, side, 3] from 0 to 1."""
    grey = np.abs(rng.normal(0, _NOISE, (side, side, 1))).astype(np.float32)
    pools = digit_pools(split)
    for _ in range(pieces):
        pool = pools[rng.integers(10)]
        size = int(rng.integers(3, 5))
        top, left = rng.integers(0, DIGIT + 1 - size, 2)
        row, col = rng.integers(0, side - size, 2)
        piece = pool[rng.integers(len(pool))][top : top + size, left : left + size, None] * rng.uniform(0.3, 0.9)
        spot = grey[row : row + size, col : col + size]
        np.maximum(spot, piece, out=spot)
    return grey.repeat(3, 2)


def paste(canvas: NDArray[np.float32], digit: NDArray[np.float32], top: int, left: int, colour: int) -> None:
    """Draw an 8 x 8 digit in a colour with its upper left corner on this pixel, in place."""
    spot = canvas[top : top + DIGIT, left : left + DIGIT]
    ink = np.clip(digit * 1.3, 0, 1)[..., None]
    tint = np.array(COLOURS[COLOUR_NAMES[colour]], np.float32)
    # The digit dims what lies under it, so that clutter never reads as a stroke.
    spot[:] = spot * 0.3 * (1 - ink) + digit[..., None] * tint


def finished(canvas: NDArray[np.float32]) -> Image:
    """Return a drawing as pixels, uint8."""
    return np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)
