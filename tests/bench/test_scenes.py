"""Scenes are deterministic, split without leaks, show what their digits say, and every answer follows from them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from tithe.bench.tasks import scenes
from tithe.bench.tasks.canvas import COLOUR_NAMES, COLOURS, DIGIT
from tithe.bench.tasks.scenes import FORMS, FRAMES, KINDS, PICTURES, Case, Form, Glyph, Kind, Scene

SEEDS = range(12)


def drawn(form: Form, seed: int) -> Scene:
    return scenes.scene(np.random.default_rng(seed), "test", form)


def spot(one: Scene, part: int, row: int, col: int) -> NDArray[np.float64]:
    """The pixels of a cell."""
    return one.images[part, row * DIGIT : (row + 1) * DIGIT, col * DIGIT : (col + 1) * DIGIT].astype(float)


def hue(cell: NDArray[np.float64]) -> int:
    """Index of the palette colour nearest to a cell's brightest pixel."""
    brightest = cell.reshape(-1, 3)[cell.sum(-1).argmax()]
    return int(((np.array(list(COLOURS.values())) - brightest / brightest.max()) ** 2).sum(1).argmin())


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_case(kind: Kind) -> None:
    first, again, other = (scenes.case(seed, "test", [kind]) for seed in (3, 3, 4))
    assert np.array_equal(first.scene.images, again.scene.images) and first.question == again.question
    assert not np.array_equal(first.scene.images, other.scene.images)
    assert not np.array_equal(first.scene.images, scenes.case(3, "train", [kind]).scene.images)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_pictures_show_what_the_digits_say(form: Form, seed: int) -> None:
    one = drawn(form, seed)
    digits, colours = scenes.cell_labels(one)
    assert one.images.dtype == np.uint8 and digits.shape[1:] == tuple(side // DIGIT for side in one.images.shape[1:3])
    assert (digits >= 0).sum() == len({glyph[:1] + glyph[3:] for glyph in one.glyphs}) == len(one.glyphs)
    for glyph in one.glyphs:
        assert digits[glyph.part, glyph.row, glyph.col] == glyph.digit
        assert hue(spot(one, glyph.part, glyph.row, glyph.col)) == colours[glyph.part, glyph.row, glyph.col]
    for part, row, col in np.argwhere(digits < 0):
        cell = spot(one, part, row, col)
        assert np.ptp(cell, axis=-1).max() == 0, "a cell without a digit is grey"


@pytest.mark.parametrize("seed", SEEDS)
def test_lines_strewn_albums_and_clips(seed: int) -> None:
    lines, strewn, album, clip = (drawn(form, seed) for form in FORMS)
    rows = {glyph.row for glyph in lines.glyphs}
    assert 3 <= len(rows) <= 4 and set(Counter(glyph.row for glyph in lines.glyphs).values()) == {scenes.LINE}
    assert all(len({g.colour for g in lines.glyphs if g.row == row}) == 1 for row in rows)
    counts = Counter(glyph.colour for glyph in strewn.glyphs)
    assert len(counts) == 3 and set(counts.values()) <= set(range(1, scenes.MOST + 1))
    assert len({glyph.digit for glyph in strewn.glyphs}) == len(strewn.glyphs)
    assert [glyph.part for glyph in album.glyphs] == list(range(PICTURES))
    assert len({glyph.digit for glyph in album.glyphs}) == len({glyph.colour for glyph in album.glyphs}) == PICTURES
    walker, visitors = clip.glyphs[:FRAMES], clip.glyphs[FRAMES:]
    assert [glyph.part for glyph in walker] == list(range(FRAMES))
    steps = [abs(a.row - b.row) + abs(a.col - b.col) for a, b in pairwise(walker)]
    assert steps == [1] * (FRAMES - 1)
    assert len({glyph.part for glyph in visitors}) == scenes.VISITORS
    assert len({glyph.digit for glyph in (walker[0], *visitors)}) == 1 + scenes.VISITORS


def test_only_frames_with_a_visitor_or_the_walker_change() -> None:
    one = drawn("clip", 5)
    digits, _ = scenes.cell_labels(one)
    empty = np.argwhere((digits < 0).all(0))
    for row, col in empty:
        assert all(np.array_equal(spot(one, 0, row, col), spot(one, part, row, col)) for part in range(1, FRAMES))


def answer(case: Case, kind: Kind) -> str:
    """The answer to a question, read off its words and the digits alone."""
    words, glyphs = case.question.text.split(), case.scene.glyphs

    def the(found: list[Glyph]) -> Glyph:
        assert len(found) == 1, "a question has one answer"
        return found[0]

    named = [g for g in glyphs if COLOUR_NAMES[g.colour] in words]
    if kind == "ocr":
        return " ".join(str(g.digit) for g in sorted(named, key=lambda g: (g.row, g.col)))
    if kind == "counting":
        return ("none", "one", "two", "three", "four", "five")[len(named)]
    if kind in ("grounding", "which"):
        one = the([g for g in glyphs if g.digit == int(words[-1])])
        return f"r{one.row + 1} c{one.col + 1}" if kind == "grounding" else "abcdef"[one.part]
    if kind == "when":
        return f"t{the([g for g in glyphs if g.digit == int(words[-1])]).part + 1}"
    if kind == "who":
        return str(the(named).digit)
    if kind == "what":
        return str(the([g for g in glyphs if g.part == "abcdef".index(words[-1])]).digit)
    one = the([g for g in glyphs if g.part == int(words[-1][1:]) - 1 and g.digit == int(words[2])])
    return f"r{one.row + 1} c{one.col + 1}"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_scene(kind: Kind) -> None:
    for seed in range(60):
        case = scenes.case(seed, "test", [kind])
        assert case.question.answer == answer(case, kind)
        assert set(case.question.glyphs) <= set(case.scene.glyphs) and case.question.glyphs


def test_kinds_are_asked_in_turn_and_others_refused() -> None:
    asked = {scenes.case(seed, "test", ["when", "who", "where"]).question.text.split()[0] for seed in range(20)}
    assert asked == {"when", "what", "where"}
    with pytest.raises(ValueError, match="possible are ocr"):
        scenes.case(0, "test", ["when", "whenn"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="is not asked of clip"):
        scenes.ask(np.random.default_rng(0), drawn("clip", 0), "ocr")
