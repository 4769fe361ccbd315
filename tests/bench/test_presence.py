"""Presence: what is asked is drawn, the marks are POPE's, and models without a yes are refused."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from PIL import ImageColor

import tithe
from tithe.bench.ask import Reply, untouched
from tithe.bench.figures import NOTHING
from tithe.bench.prompt import Ask, Prompt
from tithe.bench.tasks import canvas, presence
from tithe.bench.tasks.base import Answer, Setting
from tithe.bench.tasks.presence import COLOURS, INVENTORY, PRESENCE, SHAPES, Thing, drawn, presence_case, question
from tithe.errors import BadInput
from tithe.zoo import Loaded


@pytest.mark.parametrize("negatives", ["random", "crossed"])
def test_half_is_there_and_nothing_is_asked_twice(negatives: presence.Negatives) -> None:
    for seed in range(30):
        things, polls = presence_case(seed, negatives)
        there = {thing.name for thing in things}
        assert [poll.there for poll in polls] == [True, False] * 3
        assert all((poll.thing in there) is poll.there for poll in polls)
        assert len({poll.thing for poll in polls}) == 6 and len({thing.cell for thing in things}) == 3
        assert presence_case(seed, negatives) == (things, polls)
        if negatives == "crossed":
            words = {word for name in there for word in name.split()}
            assert all(set(poll.thing.split()) <= words for poll in polls)
    assert presence_case(0)[0] != presence_case(1)[0]


def test_pictures_show_the_things_where_they_are_and_no_other_colour() -> None:
    for seed in range(5):
        things, _ = presence_case(seed)
        pixels = np.asarray(drawn(things))
        for thing in things:
            row, col = divmod(thing.cell, 3)
            spot = pixels[row * 112 : (row + 1) * 112, col * 112 : (col + 1) * 112]
            ink = (spot == ImageColor.getrgb(thing.colour)).all(-1)
            assert ink[56, 56] and 0.1 < ink.mean() < 0.6 and ((spot == 255).all(-1) | ink).all()
        others = set(COLOURS) - {thing.colour for thing in things}
        assert not any((pixels == ImageColor.getrgb(colour)).all(-1).any() for colour in others)


def test_no_two_shapes_look_alike() -> None:
    masks = [np.asarray(drawn([Thing("black", shape, 4)]))[..., 0] == 0 for shape in SHAPES]
    for place, mask in enumerate(masks):
        for other in masks[:place]:
            assert (mask ^ other).sum() > 0.15 * (mask | other).sum()


def test_question_is_popes() -> None:
    assert question("red circle").startswith("Is there a red circle in the image?")
    assert question("orange star").startswith("Is there an orange star in the image?")


def test_columns_are_those_of_the_confusion() -> None:
    given = ["Yes, there is.", "no", "No.", "Yes", "yes", "There is not."]
    true = ["yes", "no", "yes", "no", "yes", "no"]
    answers = [Answer("", one, said, 0) for one, said in zip(true, given, strict=True)]
    found = PRESENCE.extras(Prompt({}, ()), answers, [Reply((), NOTHING, torch.empty(0, 0))] * 6)
    assert found == pytest.approx({"hallucinated": 1 / 3, "recall": 2 / 3, "yes_ratio": 0.5})
    marks = [presence._ask(Ask((), "", None, 8), poll).mark for poll in presence_case(0)[1]]
    assert [mark(said) for mark, said in zip(marks, given, strict=True) if mark] == [1, 1, 0, 0, 1, 1]
    assert [mark("") for mark in marks if mark] == [0] * 6


def test_embedded_models_are_refused_and_the_variant_is_another_task(vlm: Loaded) -> None:
    with pytest.raises(BadInput, match="no word for yes and no"):
        PRESENCE.check(vlm, Setting())
    crossed = PRESENCE.variant("crossed")
    assert crossed and crossed.name == "presence@crossed" and PRESENCE.variant("popular") is None


def test_a_model_with_the_words_is_asked_all_six(vlm: Loaded) -> None:
    loaded = Loaded(deepcopy(vlm.model), deepcopy(vlm.processor), "vlm")
    words = {word for poll in presence_case(0)[1] for word in question(poll.thing).rstrip(".").split()}
    loaded.processor.tokenizer.add_tokens(sorted(words | {"yes", "no", "image?"}))
    loaded.model.resize_token_embeddings(len(loaded.processor.tokenizer), mean_resizing=False)
    PRESENCE.check(loaded, Setting())
    for where in ("inside", "after"):
        setting = Setting(n=1, question=where)  # type: ignore[arg-type]
        (full,) = PRESENCE.mark(loaded, untouched, setting, [0])
        (few,) = PRESENCE.mark(loaded, partial(tithe.on, loaded.model, "random-patches", keep=0.25), setting, [0])
        assert [one.expected for one in full.answers] == ["yes", "no"] * 3 and len(full.ids) == 6
        assert full.quality == sum(one.score for one in full.answers) / 6
        assert few.figures.kept_tokens == 36 and few.figures.kv_bytes < full.figures.kv_bytes


def test_inventory_names_all_that_is_there_and_chair_counts_the_rest(vlm: Loaded) -> None:
    prompt = INVENTORY.prompt(vlm, Setting(), 5)
    wanted = [one.answer or "" for one in prompt.asks]
    assert len(wanted) % 2 == 0 and set(wanted) == prompt.shown - set(canvas.QUADRANTS)
    absent = next(name for name in prompt.names if name not in prompt.shown)
    right = [Answer("", one, one, 1) for one in wanted]
    assert INVENTORY.extras(prompt, right, []) == {"chair_i": 0, "chair_s": 0}
    wrong = INVENTORY.extras(prompt, [*right[1:], Answer("", wanted[0], absent, 0)], [])
    assert wrong == {"chair_i": 1 / len(wanted), "chair_s": 1}


def test_inventory_tells_a_method_that_loses_digits(vlm: Loaded) -> None:
    few = partial(tithe.on, vlm.model, "random-patches", keep=0.1)
    full, less = (INVENTORY.mark(vlm, attach, Setting(n=6), range(6)) for attach in (untouched, few))
    assert sum(one.quality for one in full) / 6 > 0.8 > sum(one.quality for one in less) / 6
    assert sum(one.extras["chair_i"] for one in full) < sum(one.extras["chair_i"] for one in less)
