"""Marks: against what SQuAD's and RULER's own code says, and where this library goes beyond them."""

from __future__ import annotations

import json
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tithe.bench import marking

VECTORS = Path(__file__).parents[1] / "vectors" / "marking.npz"


@pytest.fixture(scope="module")
def recorded() -> Any:
    return np.load(VECTORS)


def test_exact_and_f1_are_squads(recorded: Any) -> None:
    pairs = list(zip(recorded["given"].tolist(), recorded["expected"].tolist(), strict=True))
    assert len(pairs) == 300 and 0.2 < recorded["exact"].mean() < 0.8
    assert [marking.exact(*pair) for pair in pairs] == recorded["exact"].tolist()
    assert [marking.f1(*pair) for pair in pairs] == pytest.approx(recorded["f1"].tolist(), abs=1e-12)


def test_all_of_and_any_of_are_rulers(recorded: Any) -> None:
    rows = list(zip(recorded["given"].tolist(), map(json.loads, recorded["wanted"].tolist()), strict=True))
    assert [round(100 * marking.all_of(given, wanted), 2) for given, wanted in rows] == recorded["all"].tolist()
    assert [100 * marking.any_of(given, wanted) for given, wanted in rows] == recorded["part"].tolist()
    assert {0.0, 100.0} < set(recorded["all"].tolist())


def naive_begins(given: str, expected: str) -> bool:
    """The words of ASCII text, bare of punctuation, counted off from the front."""

    def words(text: str) -> list[str]:
        return [bare for raw in text.lower().split() if (bare := raw.strip(string.punctuation))]

    wanted = words(expected)
    return bool(wanted) and words(given)[: len(wanted)] == wanted


def test_begins_counts_words_off_from_the_front(recorded: Any) -> None:
    pairs = list(zip(recorded["given"].tolist(), recorded["expected"].tolist(), strict=True))
    marks = [marking.begins(*pair) for pair in pairs]
    assert marks == [float(naive_begins(*pair)) for pair in pairs] and 0.05 < sum(marks) / len(marks) < 0.95


@pytest.mark.parametrize(
    ("given", "expected", "mark"),
    [
        (" amber tiger", "amber tiger", 1),
        ("Amber tiger.\nAnd more", "amber tiger", 1),
        ("top-left", "top-left", 1),
        ("«Amber» tiger", "amber tiger", 1),
        ("東京です。", "東京", 1),
        ("京東", "東京", 0),
        ("amber", "amber tiger", 0),
        ("seventy", "seven", 0),
        ("", "amber", 0),
        ("anything", "", 0),
        ("anything", "—!", 0),
    ],
)
def test_begins(given: str, expected: str, mark: float) -> None:
    assert marking.begins(given, expected) == mark


@pytest.mark.parametrize(
    ("given", "expected", "mark"),
    [
        ("It was Paris, of course.", "paris", 1),
        ("in (Paris)", "Paris", 1),
        ("New\n  York City", "new york", 1),
        ("Parisian", "Paris", 0),
        ("the year 2012", "12", 0),
        ("12 or 2012", "12", 1),
        ("about 3.5 km", "5", 0),
        ("about 3.5 km", "3", 0),
        ("about 13.5 km", "3.5", 0),
        ("about 3.5. Or 5.", "5", 1),
        ("costs $5.", "$5", 1),
        ("我住在东京都", "东京", 1),
        ("STRASSE 3", "straße", 1),
        ("नमस्ते", "नमस्त", 0),
        ("nothing", "", 0),
        ("", "nothing", 0),
    ],
)
def test_contains(given: str, expected: str, mark: float) -> None:
    assert marking.contains(given, expected) == mark


def test_a_letter_and_its_accent_may_be_two_characters() -> None:
    one, two = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    assert one != two
    for mark in (marking.exact, marking.begins, marking.contains, marking.f1):
        assert mark(one, two) == mark(two, one) == 1 and mark(one, "cafe") == 0
    assert marking.all_of(one, (two, "tea")) == 0.5 and marking.any_of(one, ("tea", two)) == 1


def test_punctuation_is_unicodes() -> None:
    assert marking.exact("„Berlin“", "berlin!") == 1 and marking.f1("“Berlin”", "berlin") == 1


def test_f1_counts_characters_where_words_have_no_spaces() -> None:
    assert marking.f1("东京都", "东京") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))


def test_nothing_said_and_nothing_wanted() -> None:
    assert marking.f1("", "the") == marking.exact("", "") == 1 and marking.f1("", "cat") == marking.f1("cat", "") == 0
    assert marking.all_of("anything", ()) == marking.any_of("anything", ()) == 0


@pytest.mark.parametrize(
    ("given", "right", "mark"),
    [
        ("cat", "cat", 1),
        ("Cat food, please", "cat food", 1),
        ("Cat food, please", "cat", 0),
        ("It is a dog.", "dog", 1),
        ("It is cat food", "cat food", 1),
        ("either cat or dog", "dog", 0),
        ("either cat or dog", "cat", 0),
        ("cat, not dog", "cat", 1),
        ("a horse", "cat", 0),
        ("", "cat", 0),
    ],
)
def test_choice_names_one_option(given: str, right: str, mark: float) -> None:
    assert marking.choice(given, ("cat", "dog", "cat food"), right) == mark


def test_choice_of_letters() -> None:
    assert marking.choice("(B) because", "ABCD", "B") == 1 and marking.choice("B.", "ABCD", "C") == 0
