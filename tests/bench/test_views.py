"""Views: which token each slot of an event stands for, and what a page may say of it."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tithe import page
from tithe.bench import specs, views
from tithe.bench.prompt import compose
from tithe.bench.tasks import canvas
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.needle import NEEDLE
from tithe.bench.tasks.vision import VQA
from tithe.bench.views import Look, layer_views
from tithe.errors import Refused
from tithe.trace import Event
from tithe.types import DEAD
from tithe.zoo import Loaded


def event(cols: Any, keep: Any, scores: Any = None, layer: int | None = 0, phase: str = "prefill") -> Event:
    given = {"cols": torch.tensor([cols]), "keep": None if keep is None else torch.tensor([keep])}
    if scores is not None:
        given["scores"] = torch.tensor([scores])
    shape: dict[str, Any] = {"fired": 1, "end": 0, "seen": (4,), "kept": (2.0,), "heads_kept": ((2,),)}
    return Event("m", 0, "attention", "text", layer, phase, **shape, saving="real", **given)  # type: ignore[arg-type]


def place(one: Event) -> torch.Tensor:
    assert one.cols is not None
    return one.cols[0].long()


def look(*labels: str, keeps: tuple[float | int, ...] = (0.5,), **options: Any) -> Look:
    found = [specs.parse(label) for label in labels]
    return Look([(spec, keep) for spec in found for keep in spec.budgets(keeps)], **options)


def test_shares_are_of_heads_and_what_was_gone_is_not_kept() -> None:
    cols = [[0, 1, 3, 9, DEAD], [0, 2, 3, 9, DEAD]]
    keep = [[True, False, True, True, False], [True, True, False, True, False]]
    scores = [[4.0, 1.0, 2.0, 9.0, 9.0], [2.0, 5.0, math.nan, 9.0, 9.0]]
    (view,) = layer_views([event(cols, keep, scores)], 5, place)
    assert view.kept == (1.0, 0.0, 0.5, 0.5, 0.0)
    assert view.scores is not None and view.scores[:3] == (3.0, 1.0, 5.0)
    assert math.isnan(view.scores[3]) and math.isnan(view.scores[4])


def test_layers_are_in_order_and_the_strictest_step_counts() -> None:
    one = event([[0, 1, 2]], [[True, True, False]], layer=1)
    two = event([[0, 1, 2]], [[False, True, True]], [[1.0, 2.0, 3.0]], layer=1)
    first = event([[0, 1, 2]], None, layer=None)
    found = layer_views([one, two, first], 3, place)
    assert [(view.layer, view.kept) for view in found] == [(None, (1.0, 1.0, 1.0)), (1, (0.0, 1.0, 0.0))]
    assert found[1].scores == (1.0, 2.0, 3.0)


def test_a_prefill_goes_before_decode_steps_and_nothing_means_all_kept() -> None:
    reading = event([[0, 1]], [[True, False]])
    writing = event([[0, 1]], [[True, True]], phase="decode")
    assert layer_views([writing, reading], 2, place)[0].kept == (1.0, 0.0)
    assert layer_views([writing], 2, place)[0].kept == (1.0, 1.0)
    assert layer_views([], 2, place) == (page.LayerView(None, None, (1.0, 1.0)),)


@pytest.mark.parametrize("where", ["inside", "after"])
def test_a_text_case_shows_what_was_kept(llm: Loaded, where: Any) -> None:
    prompt = next(NEEDLE.prompts(llm, Setting(n=1, length=128)))
    case = views.text_case(llm, "zoo", prompt, where, look("snapkv", "recency", keeps=(40, 1.0)))
    length = 128 + (len(prompt.asks[0].ids) if where == "inside" else 0)
    assert len(case.tokens) == length and case.expected == prompt.asks[0].answer
    some, every, recent, _ = case.views
    assert [sum(layer.kept) for layer in some.layers] == [40.0] * 4
    assert all(layer.scores is not None for layer in some.layers)
    assert {share for layer in every.layers for share in layer.kept} == {1.0}
    assert every.answer == case.untouched_answer and every.right
    assert recent.layers[0].kept == (0.0,) * (length - 40) + (1.0,) * 40


@pytest.mark.parametrize(
    ("method", "layer"), [("fastervlm", None), ("fastv:layer=2", 2), ("uniform", 0), ("hiprune+snapkv:keep=40", None)]
)
def test_an_image_case_maps_every_site_to_the_grid(vlm: Loaded, method: str, layer: int | None) -> None:
    prompt = next(VQA.prompts(vlm, Setting(n=1)))
    picture = Image.fromarray(canvas.vqa_case(Setting(n=1).seeds().start, "test").image)
    case = views.image_case(vlm, "zoo", [picture], prompt, "inside", look(method, keeps=(0.25,)))
    (seen,) = case.pictures
    assert seen.grid == (12, 12) and case.question == prompt.asks[0].text and case.aside == 0
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(seen.data))), np.asarray(picture))
    (view,) = case.views
    assert view.layers[0].layer == layer
    kept = sum(view.layers[0].kept)
    assert kept == 36 if layer != 0 else 30 <= kept <= 38


def test_columns_and_patches_are_the_same_tokens(vlm: Loaded) -> None:
    """Recency, over columns, keeps the last patches of the grid."""
    prompt = next(VQA.prompts(vlm, Setting(n=1)))
    case = views.image_case(vlm, "zoo", [Image.new("RGB", (48, 48))], prompt, "after", look("recency", keeps=(30,)))
    assert case.views[0].layers[0].kept == (0.0,) * 114 + (1.0,) * 30


def test_a_classifier_s_blocks_are_shown_without_cls(vit: Loaded) -> None:
    picture = Image.fromarray(canvas.digits_case(0, "test").image)
    prompt = compose(vit, image=picture)
    case = views.image_case(vit, "zoo", [picture], prompt, "inside", look("random-blocks", "tome"))
    blocks, tome = case.views
    assert sum(blocks.layers[0].kept) == 72 and len(case.untouched_answer.split(", ")) == 4
    assert [view.layer for view in tome.layers] == list(range(6))
    left = [sum(view.kept) for view in tome.layers]
    assert left == sorted(left, reverse=True) and left[-1] == 72 and tome.staged
    for view in tome.layers:
        assert view.name == f"block {view.layer}" and view.into is not None
        assert [to == -1 for to in view.into] == [kept == 1 for kept in view.kept]


def test_an_explanation_shows_each_of_its_results(llm: Loaded) -> None:
    prompt = next(NEEDLE.prompts(llm, Setting(n=1, length=128)))
    case = views.text_case(llm, "zoo", prompt, "inside", look("preplan-anchor"))
    assert [view.method for view in case.views] == ["preplan-anchor · waad", "preplan-anchor · fai"]
    waad, fai = (view.layers[0] for view in case.views)
    assert set(waad.kept) == {1.0} and waad.scores != fai.scores


def test_what_cannot_be_served_is_raised_or_noted(llm: Loaded) -> None:
    prompt = next(NEEDLE.prompts(llm, Setting(n=1, length=128)))
    with pytest.raises(Refused, match="vlm"):
        views.text_case(llm, "zoo", prompt, "inside", look("fastv"))
    noted: list[str] = []
    case = views.text_case(
        llm, "zoo", prompt, "inside", look("fastv", "random", refuse=lambda spec, keep, error: noted.append(spec.label))
    )
    assert noted == ["fastv"] and [view.method for view in case.views] == ["random"]


def test_the_part_that_a_processor_crops_away_is_not_shown(vlm: Loaded, vit: Loaded) -> None:
    wide = Image.new("RGB", (100, 60))
    assert views._seen(wide, vlm).size == (60, 60)
    assert views._seen(wide, vit).size == (100, 60)
