"""Hallucination: CHAIR and POPE against naive counts and against what the authors' code gave."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tithe
from tithe.bench.ask import untouched
from tithe.bench.hallucination import NEGATIVES, chair, hallucinated, named, polled, polls, says_yes
from tithe.bench.tasks import canvas
from tithe.bench.tasks.base import Answer, Setting
from tithe.bench.tasks.pictures import OCR
from tithe.bench.tasks.vision import VQA
from tithe.errors import BadInput
from tithe.zoo import Loaded

VECTOR = Path(__file__).parents[1] / "vectors" / "hallucination.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(VECTOR) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files if name != "meta"}
        return {**arrays, **json.loads(str(file["meta"]))}


def lists(rows: np.ndarray) -> list[list[str]]:
    return [[f"thing{one}" for one in row if one >= 0] for row in rows.tolist()]


def test_names_are_found_as_whole_words() -> None:
    names = ("red", "7", "top-left", "r3 c5", "left")
    assert named("A Red, 7.", names) == ("red", "7") and named("top-left!", names) == ("top-left",)
    assert named("bored 17 r3, c5", names) == ("r3 c5",) and named("", names) == ()


def test_hallucinated_is_not_merely_wrong() -> None:
    names, shown = ("red", "blue", "7", "3"), {"red", "7"}
    assert hallucinated(["red", "7", "3", "nothing"], names, shown) == 0.25
    assert hallucinated(["7 red blue"], names, shown) == 1
    with pytest.raises(ValueError, match="no answers"):
        hallucinated([], names, shown)


def test_chair_by_hand_and_by_the_authors(recorded: dict[str, Any]) -> None:
    given = chair([["cat", "dog", "dog"], ["cat"], []], [{"cat"}, {"cat", "dog"}, {"cat"}])
    assert given.instances == pytest.approx(2 / 4) and given.sentences == pytest.approx(1 / 3)
    assert chair([[]], [{"cat"}]).instances == 0
    with pytest.raises(ValueError, match="stand against"):
        chair([["cat"]], [])
    mine = chair(lists(recorded["chair_said"]), lists(recorded["chair_true"]))
    assert [mine.instances, mine.sentences] == pytest.approx(recorded["chair_figures"].tolist(), abs=1e-12)


def test_polled_by_the_authors_and_at_the_edges(recorded: dict[str, Any]) -> None:
    said = [says_yes(text) for text in recorded["answers"]]
    assert said == recorded["said"].tolist() and 0 < sum(said) < len(said)
    mine = polled(said, recorded["true"].tolist())
    given = [mine.accuracy, mine.precision, mine.recall, mine.f1, mine.yes_ratio]
    assert given == pytest.approx(recorded["figures"].tolist(), abs=1e-12)
    never = polled([False, False], [True, False])
    assert (never.accuracy, never.precision, never.recall, never.f1, never.yes_ratio) == (0.5, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="stand against"):
        polled([True], [])


@pytest.mark.parametrize("kind", ["popular", "adversarial"])
def test_polls_ask_what_the_authors_ask(recorded: dict[str, Any], kind: Any) -> None:
    mine = polls(lists(recorded["images"]), 3, kind)
    assert [one.thing for one in mine] == [f"thing{one}" for one in recorded[f"{kind}_thing"]]
    assert [one.there for one in mine] == recorded[f"{kind}_there"].tolist()
    assert [one.image for one in mine] == recorded[f"{kind}_image"].tolist()


@pytest.mark.parametrize("kind", NEGATIVES)
def test_polls_are_balanced_true_and_asked_once(recorded: dict[str, Any], kind: Any) -> None:
    images = lists(recorded["images"])
    mine = polls(images, 3, kind, seed=4)
    assert all((one.thing in images[one.image]) is one.there for one in mine)
    assert sum(one.there for one in mine) * 2 == len(mine) == 6 * len(images)
    assert len({(one.image, one.thing) for one in mine}) == len(mine)
    assert mine == polls(images, 3, kind, seed=4)
    assert (mine == polls(images, 3, kind, seed=5)) is (kind != "random")


def test_adversarial_negatives_stand_together_with_what_is_shown() -> None:
    images = [["a", "b"], ["a", "b"], ["a", "c"], ["d", "e"], ["e", "d"], ["d", "e"], ["a", "x"]]
    last = {
        kind: [one.thing for one in polls(images, 1, kind) if one.image == 6 and not one.there] for kind in NEGATIVES
    }
    assert last["popular"] == ["d"] and last["adversarial"] == ["b"]


def test_polls_refuse() -> None:
    with pytest.raises(BadInput, match="Did you mean 'popular'"):
        polls([["a"]], 1, "populer")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="picture 0 shows 1 things only"):
        polls([["a"]], 2)
    with pytest.raises(BadInput, match="nothing is left"):
        polls([["a", "b"]], 1)


def test_the_column_of_a_canvas_counts_what_is_not_on_it(vlm: Loaded) -> None:
    prompt = VQA.prompt(vlm, Setting(), 7)
    case = canvas.vqa_case(7, "test")
    drawn = canvas.scene(canvas.generator(0, "test", 1), "test")
    cells = {word for cell in drawn.cells for word in (str(cell.digit), canvas.COLOUR_NAMES[cell.colour])}
    assert cells <= canvas.shown(drawn) and len(canvas.shown(drawn)) == 3 * len(drawn.cells)
    absent = next(one for one in canvas.THINGS if one not in case.shown)
    present = next(one for one in canvas.THINGS if one in case.shown and one != case.answer)
    for given, share in ((case.answer, 0), (present, 0), (absent, 1), ("", 0), (f"{present} {absent}", 1)):
        assert VQA.extras(prompt, [Answer("", case.answer, given, 0)], []) == {"hallucinated": share}


def test_dropping_patches_makes_the_model_name_what_is_not_there(vlm: Loaded) -> None:
    setting = Setting(n=24)
    few = partial(tithe.on, vlm.model, "random-patches", keep=0.1)
    full, less = (VQA.mark(vlm, attach, setting, range(24)) for attach in (untouched, few))
    assert sum(one.extras["hallucinated"] for one in full) <= 2 < sum(one.extras["hallucinated"] for one in less)
    # Naming what is absent is never right.
    assert all(one.quality == 0 for one in (*full, *less) if one.extras["hallucinated"])
    assert sum(one.extras["hallucinated"] for one in less) < sum(one.quality == 0 for one in less)


def test_the_column_of_a_page_leaves_places_alone(scenes: Loaded) -> None:
    prompt = OCR.prompt(scenes, Setting(), 3)
    shown = prompt.shown
    assert shown and shown <= set(prompt.names) and not any(name.startswith("r1") for name in prompt.names)
    absent = next(name for name in prompt.names if name not in shown)
    given = [Answer("", "", text, 0) for text in (" ".join(sorted(shown)), absent)]
    assert OCR.extras(prompt, given, []) == {"hallucinated": 0.5}
