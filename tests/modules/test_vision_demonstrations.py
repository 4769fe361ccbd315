"""Each visual module does in a short training what its demonstration shows at length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

RECORD = Path(__file__).parents[2] / "docs" / "modules.json"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_record_holds_every_visual_module() -> None:
    from tithe.modules import biformer, focus_detr, multi_lane, sparseformer, stprivacy

    record = json.loads(RECORD.read_text())
    for module in (biformer, focus_detr, multi_lane, sparseformer, stprivacy):
        entry = record[module.CARD.slug]
        assert (RECORD.parents[1] / entry["command"].split()[1]).exists()
        assert entry["steps"] > 0 and entry["seed"] == 0 and entry["cpu_minutes"] < 4


@pytest.mark.slow
def test_routed_regions_serve_a_trained_vit_better_than_random_ones() -> None:
    from modules_biformer import Model
    from modules_biformer import test_accuracy as measure

    routed, chance = (measure(Model(kind), rows=96) for kind in ("routed", "random regions"))
    assert routed > chance + 0.1


@pytest.mark.slow
def test_lanes_forget_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import modules_multi_lane as demonstration

    monkeypatch.setattr(demonstration, "TRAIN", 96)
    monkeypatch.setattr(demonstration, "TEST", 96)
    lanes, one = (demonstration.train_model(kind, steps=40, seed=0) for kind in ("summaries", "one lane"))
    assert lanes["first at the end"] == pytest.approx(lanes["first task"], abs=1e-6)
    assert lanes["first task"] > 0.6 and one["first at the end"] < one["first task"] - 0.1


@pytest.mark.slow
def test_a_sparseformer_comes_to_resemble_the_vit() -> None:
    from modules_sparseformer import measure, train_model

    from tithe import zoo

    classifier = zoo.load("vit")[0].eval().requires_grad_(False)
    short, longer = (measure(train_model(classifier, True, steps, 0), classifier, rows=64) for steps in (1, 40))
    assert longer["cosine"] > short["cosine"] + 0.1


@pytest.mark.slow
def test_the_scorer_finds_the_foreground() -> None:
    from modules_focus_detr import measure, train_model

    found, chance = (measure(train_model(kind, 120, 0), rows=64) for kind in ("foreground", "random tokens"))
    assert found["foreground encoded"] > chance["foreground encoded"] + 0.3


@pytest.mark.slow
def test_the_motion_is_read_from_a_quarter_of_the_clip() -> None:
    from modules_stprivacy import test_accuracy as measure
    from modules_stprivacy import train_model

    model = train_model("chosen", steps=200, seed=0)
    assert measure(model, model.action, private=False, rows=128) > 0.6
