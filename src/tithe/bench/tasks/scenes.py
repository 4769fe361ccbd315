"""Pages, albums and clips of handwritten digits, for `zoo:scenes`: what breaks first when image tokens are dropped.

Everything lies on cells of 8 x 8 pixels, one digit a cell, among noise and grey pieces of other digits. A page is
one picture of 64 x 64 pixels: lines of writing, each in a colour of its own, or digits strewn over it. An album is
six pictures of 32 x 32 pixels, a digit each. A clip is eight frames of 32 x 32 pixels: a digit that walks, and
three visitors, each there in one frame only. Rows, columns and times have names of their own (r3 c5, t7), pictures
are letters and counts are words, so that no number stands for two things. All is a pure function of a seed; the
train and test splits share no digit image. The digits are those of `canvas`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from tithe.bench.tasks.canvas import COLOUR_NAMES, DIGIT, Split, clutter, digit_pools, finished, generator, paste

Kind = Literal["ocr", "counting", "grounding", "which", "what", "when", "who", "where"]
Form = Literal["lines", "strewn", "album", "clip"]

KINDS: tuple[Kind, ...] = get_args(Kind)
FORMS: tuple[Form, ...] = get_args(Form)
PAGE, PICTURE = 64, 32
PICTURES, FRAMES = 6, 8
LINE, MOST = 4, 5
VISITORS = 3
NAMES = "abcdef"
COUNTS = ("one", "two", "three", "four", "five")

THINGS = (*map(str, range(10)), *COLOUR_NAMES)

_PIECES = 8
_SIDE = PAGE // DIGIT
_CELLS = PICTURE // DIGIT


class Glyph(NamedTuple):
    """A digit: the picture or frame it is in, what it is, its colour, and its cell."""

    part: int
    digit: int
    colour: int
    row: int
    col: int


class Scene(NamedTuple):
    """Pictures, uint8 [n, side, side, 3], one for a page; and every digit in them, of a clip the walker's first."""

    form: Form
    images: NDArray[np.uint8]
    glyphs: tuple[Glyph, ...]


class Question(NamedTuple):
    """A question, its answer in words, and the digits one has to see to answer it."""

    text: str
    answer: str
    glyphs: tuple[Glyph, ...]


class Case(NamedTuple):
    """A scene and one question about it."""

    scene: Scene
    question: Question


ASKED_OF: dict[Form, tuple[Kind, ...]] = {
    "lines": ("ocr",),
    "strewn": ("counting", "grounding"),
    "album": ("which", "what"),
    "clip": ("when", "who", "where"),
}


def case(seed: int, split: Split, kinds: Sequence[Kind]) -> Case:
    """Draw a scene and ask one question about it, of a kind drawn from `kinds`, all about the same form of scene.

    Raises:
        ValueError: for an unknown split or kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds={unknown}; possible are {', '.join(KINDS)}")
    rng = generator(seed, split, 2 + KINDS.index(kinds[0]))
    kind = kinds[int(rng.integers(len(kinds)))]
    form = next(form for form, asked in ASKED_OF.items() if kind in asked)
    drawn = scene(rng, split, form)
    return Case(drawn, ask(rng, drawn, kind))


def scene(rng: np.random.Generator, split: Split, form: Form) -> Scene:
    """Draw a scene of this form."""
    glyphs = _LAYOUTS[form](rng)
    if form == "clip":
        # What does not move is the same in every frame, its noise included.
        images = np.repeat(clutter(rng, split, PICTURE, _PIECES // 2)[None], FRAMES, 0)
    elif form == "album":
        images = np.stack([clutter(rng, split, PICTURE, _PIECES // 2) for _ in range(PICTURES)])
    else:
        images = clutter(rng, split, PAGE, 2 * _PIECES)[None]
    pools = digit_pools(split)
    walker = glyphs[0] if form == "clip" else None
    inks: dict[tuple[int, int], NDArray[np.float32]] = {}
    for place, glyph in enumerate(glyphs):
        walks = walker is not None and (glyph.digit, glyph.colour) == (walker.digit, walker.colour)
        pool = pools[glyph.digit]
        ink = pool[rng.integers(len(pool))] * rng.uniform(0.8, 1.0)
        ink = inks.setdefault((-1, 0) if walks else (0, place), ink)
        paste(images[glyph.part], ink, glyph.row * DIGIT, glyph.col * DIGIT, glyph.colour)
    return Scene(form, np.stack([finished(image) for image in images]), glyphs)


def ask(rng: np.random.Generator, drawn: Scene, kind: Kind) -> Question:
    """Ask about a scene; what tells cases apart comes last, so that the question closes on it.

    Raises:
        ValueError: a kind of question that is not asked of this form of scene.
    """
    if kind not in ASKED_OF[drawn.form]:
        raise ValueError(f"kind={kind!r} is not asked of {drawn.form}; possible are {', '.join(ASKED_OF[drawn.form])}")
    return _QUESTIONS[kind](rng, drawn.glyphs)


def shown(drawn: Scene) -> frozenset[str]:
    """Return which digits and colours are there; a place beside the right one is not exact, but nothing made up."""
    return frozenset(name for glyph in drawn.glyphs for name in (str(glyph.digit), COLOUR_NAMES[glyph.colour]))


def cell_labels(drawn: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Digit and colour of every cell, int64 [n, rows, cols], -1 where there is no digit."""
    n, side = drawn.images.shape[:2]
    digits = np.full((n, side // DIGIT, side // DIGIT), -1, np.int64)
    colours = digits.copy()
    for glyph in drawn.glyphs:
        digits[glyph.part, glyph.row, glyph.col] = glyph.digit
        colours[glyph.part, glyph.row, glyph.col] = glyph.colour
    return digits, colours


def _lines(rng: np.random.Generator) -> tuple[Glyph, ...]:
    colours = rng.permutation(len(COLOUR_NAMES))[: rng.integers(3, 5)]
    rows = np.sort(rng.permutation(_SIDE)[: len(colours)])
    return tuple(
        Glyph(0, int(rng.integers(10)), int(colour), int(row), 2 * slot + int(rng.integers(2)))
        for row, colour in zip(rows, colours, strict=True)
        for slot in range(LINE)
    )


def _strewn(rng: np.random.Generator) -> tuple[Glyph, ...]:
    """Digits of three colours, from one to five of each; no two digits are the same."""
    counts = rng.integers(1, MOST + 1, 3)
    while counts.sum() > 10:
        counts = rng.integers(1, MOST + 1, 3)
    colours = rng.permutation(len(COLOUR_NAMES))[:3].repeat(counts)
    places = rng.permutation(_SIDE**2)
    told = zip(rng.permutation(10), colours, places, strict=False)
    return tuple(Glyph(0, int(digit), int(colour), *map(int, divmod(place, _SIDE))) for digit, colour, place in told)


def _album(rng: np.random.Generator) -> tuple[Glyph, ...]:
    """A digit a picture; no two digits or colours are the same."""
    told = zip(
        rng.permutation(10), rng.permutation(len(COLOUR_NAMES)), rng.integers(0, _CELLS**2, PICTURES), strict=False
    )
    return tuple(
        Glyph(part, int(digit), int(colour), *map(int, divmod(place, _CELLS)))
        for part, (digit, colour, place) in enumerate(told)
    )


def _clip(rng: np.random.Generator) -> tuple[Glyph, ...]:
    digits, colours = rng.permutation(10), rng.permutation(len(COLOUR_NAMES))
    row, col = (int(place) for place in rng.integers(0, _CELLS, 2))
    walk = []
    for part in range(FRAMES):
        walk.append(Glyph(part, int(digits[0]), int(colours[0]), row, col))
        steps = [(row + y, col + x) for y, x in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        steps = [step for step in steps if min(step) >= 0 and max(step) < _CELLS]
        row, col = steps[rng.integers(len(steps))]
    visits = []
    for which, part in enumerate(rng.permutation(FRAMES)[:VISITORS]):
        free = [divmod(place, _CELLS) for place in range(_CELLS**2)]
        free.remove((walk[part].row, walk[part].col))
        at = free[rng.integers(len(free))]
        visits.append(Glyph(int(part), int(digits[1 + which]), int(colours[1 + which]), *at))
    return (*walk, *visits)


def _ocr(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    colour = glyphs[rng.integers(len(glyphs))].colour
    line = tuple(sorted((g for g in glyphs if g.colour == colour), key=lambda glyph: glyph.col))
    return Question(f"read {COLOUR_NAMES[colour]}", " ".join(str(glyph.digit) for glyph in line), line)


def _counting(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    present = sorted({glyph.colour for glyph in glyphs})
    colour = present[rng.integers(len(present))]
    counted = tuple(glyph for glyph in glyphs if glyph.colour == colour)
    return Question(f"how many {COLOUR_NAMES[colour]}", COUNTS[len(counted) - 1], counted)


def _grounding(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    glyph = glyphs[rng.integers(len(glyphs))]
    return Question(f"where is {glyph.digit}", _place(glyph), (glyph,))


def _which(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    glyph = glyphs[rng.integers(len(glyphs))]
    return Question(f"which picture is {glyph.digit}", NAMES[glyph.part], (glyph,))


def _what(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    glyph = glyphs[rng.integers(len(glyphs))]
    return Question(f"what digit is in picture {NAMES[glyph.part]}", str(glyph.digit), (glyph,))


def _when(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    glyph = glyphs[FRAMES + rng.integers(VISITORS)]
    return Question(f"when is {glyph.digit}", f"t{1 + glyph.part}", (glyph,))


def _who(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    glyph = glyphs[FRAMES + rng.integers(VISITORS)]
    return Question(f"what digit is {COLOUR_NAMES[glyph.colour]}", str(glyph.digit), (glyph,))


def _where(rng: np.random.Generator, glyphs: tuple[Glyph, ...]) -> Question:
    glyph = glyphs[rng.integers(FRAMES)]
    return Question(f"where is {glyph.digit} at t{1 + glyph.part}", _place(glyph), (glyph,))


def _place(glyph: Glyph) -> str:
    return f"r{1 + glyph.row} c{1 + glyph.col}"


_LAYOUTS: dict[Form, Callable[[np.random.Generator], tuple[Glyph, ...]]] = {
    "lines": _lines,
    "strewn": _strewn,
    "album": _album,
    "clip": _clip,
}
_QUESTIONS: dict[Kind, Callable[[np.random.Generator, tuple[Glyph, ...]], Question]] = {
    "ocr": _ocr,
    "counting": _counting,
    "grounding": _grounding,
    "which": _which,
    "what": _what,
    "when": _when,
    "who": _who,
    "where": _where,
}
