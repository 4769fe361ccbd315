"""Fates: what a page says became of the patches is what became of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import tithe
from tithe.bench import specs, views
from tithe.bench.ask import new_cache, read
from tithe.bench.boards import board
from tithe.bench.fates import Fates, pictured, placed
from tithe.bench.prompt import Prompt, joined
from tithe.bench.tasks import scenes as drawn
from tithe.bench.tasks.pictures import composed
from tithe.bench.views import Look
from tithe.page import LayerView
from tithe.page.data import ELSEWHERE
from tithe.seams.cache import owned
from tithe.trace import Event, destinations
from tithe.types import Selection
from tithe.zoo import Loaded

METHODS = ("visionzip", "aim:layer=1:end=6", "holitom", "pyramiddrop", "sparsevlm", "fastv", "lvlm-csp", "quota")
FORMS: dict[str, tuple[drawn.Kind, ...]] = {"page": ("ocr",), "album": ("which",), "clip": ("where",)}


def event(cols: list[int], keep: list[bool] | None, dest: list[int] | None = None, **given: Any) -> Event:
    shape: dict[str, Any] = {"fired": 1, "end": 0, "seen": (4,), "kept": (2.0,), "heads_kept": ((2,),)}
    site = {"point": "layer", "tower": "text", "layer": 1, "phase": "prefill", "step": 0, **given}
    return Event(
        "m",
        **site,
        **shape,
        saving="real",
        cols=torch.tensor([[cols]]),
        keep=None if keep is None else torch.tensor([[keep]]),
        dest=None if dest is None else torch.tensor([[dest]]),
    )


def scene(loaded: Loaded, form: str, seed: int = 3) -> tuple[list[Image.Image], Prompt]:
    case = drawn.case(seed, "test", FORMS[form])
    return [Image.fromarray(image) for image in case.scene.images], composed(loaded, case)


def held(loaded: Loaded, prompt: Prompt, method: tithe.types.Method) -> set[int]:
    """The columns that the last layer of the language model holds once it has read the prompt."""
    inputs, cache = joined(prompt.inputs, prompt.asks[0].ids), new_cache(loaded.model)
    with torch.no_grad(), tithe.on(loaded.model, method) as run:
        read(loaded.model, inputs, cache, run)
    store = owned(cache)[-1].store
    assert store is not None
    view = store.view()
    return set(view.cols[0, 0][view.valid[0, 0]].tolist())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", METHODS)
def test_what_is_shown_as_kept_is_what_the_last_layer_holds(label: str, form: str, scenes: Loaded) -> None:
    pictures, prompt = scene(scenes, form)
    spec = specs.parse(label)
    case = views.image_case(scenes, "zoo", pictures, prompt, "inside", Look([(spec, 0.5)]))
    (view,) = case.views
    seen = board(scenes, pictures, prompt.inputs)
    (method,) = spec.methods(0.5, {})
    columns = held(scenes, prompt, method)
    left = {int(unit) for column, unit in enumerate(seen.columns) if unit >= 0 and column in columns}
    last = view.layers[-1]
    assert view.staged and {unit for unit, kept in enumerate(last.kept) if kept} == left
    assert 0 < len(left) < len(last.kept)


@pytest.mark.parametrize("label", ["visionzip", "holitom", "quota", "aim"])
def test_what_is_shown_as_merged_is_what_the_selection_says(label: str, scenes: Loaded) -> None:
    """After the encoder: event by event, token by token, in plain Python."""
    pictures, prompt = scene(scenes, "page")
    spec = specs.parse(label)
    (method,) = spec.methods(0.5, {})
    inputs = joined(prompt.inputs, prompt.asks[0].ids)
    with torch.no_grad(), tithe.on(scenes.model, method, level="history") as run:
        scenes.model(**inputs)
    seen = board(scenes, pictures, prompt.inputs)
    into: dict[int, int] = {}
    dropped: set[int] = set()
    for one in (one for one in run.trace.history if one.point == "encoder" and one.keep is not None):
        assert one.keep is not None
        for token, kept in enumerate(one.keep[0, 0].tolist()):
            if not kept and token not in into and token not in dropped:
                to = -1 if one.dest is None else int(one.dest[0, 0, token])
                if to in (-1, token):
                    dropped.add(token)
                else:
                    into[token] = to
    wanted: dict[int, int] = {}
    for token in into:
        to = token
        while to in into:
            to = into[to]
        if to not in dropped and seen.units[token] >= 0:
            wanted[int(seen.units[token])] = int(seen.units[to]) if seen.units[to] >= 0 else ELSEWHERE
    case = views.image_case(scenes, "zoo", pictures, prompt, "inside", Look([(spec, 0.5)]))
    first = case.views[0].layers[0]
    assert first.layer is None and first.into is not None and wanted
    assert {at: to for at, to in enumerate(first.into) if to != -1} == wanted


def test_what_was_merged_goes_where_its_token_goes() -> None:
    fates = Fates(5)
    fates.note(event([0] * 5, [True, True, True, False, True], [-1, -1, -1, 2, -1]), torch.arange(5))
    fates.note(event([0] * 4, [True, True, False, True], [-1, -1, 1, -1]), torch.tensor([0, 1, 2, 4]))
    assert fates.shown() == ((1.0, 1.0, 0.0, 0.0, 1.0), (-1, -1, 1, 1, -1))
    fates.note(event([0] * 3, [True, False, True]), torch.tensor([0, 1, 4]))
    assert fates.shown() == ((1.0, 0.0, 0.0, 0.0, 1.0), None)


def test_what_comes_back_is_kept_and_what_is_missing_is_gone() -> None:
    fates = Fates(4)
    fates.note(event([0] * 4, [True, False, False, True], [-1, 0, 2, -1]), torch.arange(4))
    assert fates.shown() == ((1.0, 0.0, 0.0, 1.0), (-1, 0, -1, -1))
    fates.note(event([0] * 3, None), torch.tensor([0, 1, 3]))
    assert fates.shown() == ((1.0, 1.0, 0.0, 1.0), None)
    fates.note(event([0], None), torch.tensor([1]))
    assert fates.shown() == ((0.0, 1.0, 0.0, 0.0), None)


def test_a_token_that_is_no_patch_takes_others_out_of_sight() -> None:
    fates = Fates(2)
    fates.note(event([0] * 3, [True, False, True], [-1, 0, -1]), torch.tensor([-1, 0, 1]))
    assert fates.shown() == ((0.0, 1.0), (ELSEWHERE, -1))


def test_pictures_are_told_apart_and_stages_are_in_order() -> None:
    units, columns = torch.tensor([0, 1, -1, 2, 3]), torch.tensor([-1, 0, 1, -1, 2, 3, -1])
    given: dict[str, Any] = {"point": "encoder", "tower": "image", "layer": None}
    events = [
        event([0, 1, 2], [True, False, True], **given),
        event([0, 1], [False, True], [1, -1], **given),
        event([0, 1, 3, 5, 6], [True, True, True, False, True], layer=2),
        event([0], [True], point="block", tower="image"),
        event([0, 1, 6], None, layer=3),
    ]
    found, staged = pictured(list(placed(events, units, columns)), 4, lambda *_: ((), None))
    assert staged and found == (
        LayerView(None, None, (1.0, 0.0, 0.0, 1.0), (-1, -1, 3, -1)),
        LayerView(2, None, (1.0, 0.0, 0.0, 0.0), None, "from layer 2 on"),
    )


def test_a_mixed_token_goes_where_most_of_it_goes() -> None:
    keep = torch.tensor([[[True, False, True, False, False]]])
    mix = torch.zeros(1, 5, 5)
    mix[0, 0], mix[0, 2], mix[0, 3] = (
        torch.tensor(row) for row in ([1, 0.2, 0, 0.5, 0], [0, -0.7, 1, 0.5, 0], [9.0] * 5)
    )
    for given in (mix, mix.to_sparse()):
        found = destinations(Selection(keep, keep.int(), mix=given))
        assert found is not None and found.tolist() == [[[-1, 2, -1, 0, -1]]]
    dest = torch.tensor([[[-1, 0, -1, -1, -1]]])
    both = destinations(Selection(keep, keep.int(), dest=dest, mix=mix))
    assert both is not None and both.tolist() == [[[-1, 0, -1, 0, -1]]]
    assert destinations(Selection(keep, keep.int())) is None
