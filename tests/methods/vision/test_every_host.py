"""Every visual method on every family of vision-language models and image encoders: served exactly, or refused.

What is refused stands in the tables: a refusal more, a refusal less or a crash fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from methods.vision import every_host as hosts
from tiny_vision import CLIPS, VITS, VLMS

import tithe
from tithe.errors import BadInput, Refused

TOLERANCE = 3e-5


@dataclass(frozen=True)
class Case:
    """How a method is tried: at about ``half``, with nothing to do (``none``), with a count beyond all (``many``)."""

    half: dict[str, Any]
    none: dict[str, Any] | None = None
    many: dict[str, Any] | None = None
    slug: str = ""


def budget(**more: Any) -> Case:
    """A case of a method whose ``keep`` is a share or a count."""
    return Case(*({"keep": keep, **more} for keep in (0.5, 1.0, 10_000)))


def staged(stages: int, **more: Any) -> Case:
    """A case of a method that takes a budget for each of its stages."""
    return Case(*({"keep": (keep,) * stages, **more} for keep in (0.5, 1.0, 10_000)))


ALL = {"threshold": 0.0}
SLOW = {"slow": 0, "middle": 0}
CASES = {
    "adatoken-3d": Case({"coverage": 0.5, "layer": (1,)}, {"coverage": 1.0, "layer": (1,)}),
    # Inside the language model AIM lets go of all image tokens in the end, whatever count of them entered.
    "aim": Case({"keep": 0.5}, {"keep": 1.0}),
    "catp": Case({"keep": 0.5, "layer": 2}, {"keep": 1.0, "layer": 2}),
    "covipal": budget(),
    "divprune": budget(),
    # It always leaves as many tokens as its thumbnail has, all of them made anew.
    "docowl2": Case({}),
    "downsample": budget(),
    "dymu": budget(),
    "fastervlm": budget(),
    "fastv": budget(),
    "fopru": budget(),
    "fopru-rows": Case({"keep": 0.5, "strategy": "row"}, {"keep": 1.0, "strategy": "row"}, slug="fopru"),
    "free-video-llm": Case({"slow": 1, "middle": 0, "fast": 1, "grid": 2}, {**SLOW, "fast": 99, "grid": 99}),
    "globalcom2": budget(),
    "hiprune": budget(),
    "hired": budget(),
    "holitom": Case({"keep": 0.5}, {"keep": 1.0}, {"keep": 10_000, "tau": 1.0, "inner": 1.0}),
    "lvlm-csp": budget(layer=(1, 2, 2)),
    # However many it keeps, each takes in its neighbours.
    "prumerge": Case({"neighbours": 3}),
    "pyramiddrop": staged(2, layer=(2, 3)),
    "quota": budget(),
    "random-patches": budget(),
    "rcp": budget(layer=(2, 3)),
    "sparsevlm": staged(2, layer=(1, 2)),
    "stts": budget(),
    "textmonkey": budget(),
    "todre": Case({"keep": 0.5}, {"keep": 1.0, **ALL}, {"keep": 10_000, **ALL}),
    "todre-random": Case({"keep": 0.5, "pivot": "random"}, {"keep": 1.0, "pivot": "random", **ALL}, slug="todre"),
    "token-correlation-doc": Case({}, {"floor": 1.0}),
    "transprune": staged(1, layer=(1,), observed=(0, 1)),
    "ts-llava": budget(),
    "uniform-patches": budget(),
    "vflowopt": Case({"keep": 0.5}, {"keep": 1.0}),
    "visionzip": budget(),
    "vtc-cls": budget(),
}
LEFT_OUT = {("token-correlation-doc", "llava_next"): "newlines always go"}

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NO_CLS = (*QWEN, "llava_onevision", "idefics3", "smolvlm", "gemma3")
NO_TAIL = (*QWEN, "internvl", "idefics3", "smolvlm", "gemma3")
BY_CLS = (
    "fastervlm", "globalcom2", "hired", "prumerge", "todre", "token-correlation-doc", "visionzip", "vtc-cls"
)  # fmt: skip
RASTER, SIZES = "no full raster of tokens", "no frames of one video"
EITHER = f"{RASTER}|{SIZES}"
ATTACHING: dict[str, dict[str, str]] = {
    **{slug: dict.fromkeys(NO_CLS, "no CLS token") for slug in BY_CLS},
    "dymu": dict.fromkeys(NO_TAIL, "declares no block tail"),
    "vflowopt": {"qwen3_vl": "layer=1 is too early"},
}
PICTURES: dict[str, dict[str, str]] = {
    "free-video-llm": {"llava_next": RASTER, "llava_onevision": EITHER, **dict.fromkeys(QWEN, SIZES)},
    "holitom": {"llava_next": RASTER, "llava_onevision": EITHER, **dict.fromkeys(QWEN, SIZES)},
    "quota": {"llava_next": RASTER, "llava_onevision": RASTER},
    "stts": dict.fromkeys(QWEN, "packed sequence"),
}
CLIPPED = {"stts": PICTURES["stts"]}
MOVING: dict[str, dict[str, str]] = {
    "free-video-llm": {"llava_onevision": RASTER, **dict.fromkeys(QWEN, SIZES)},
    "holitom": {"llava_onevision": RASTER, **dict.fromkeys(QWEN, SIZES)},
    "quota": {"llava_onevision": RASTER},
    **CLIPPED,
}

PAIRS = [(case, name) for case in CASES for name in VLMS]
SERVED = [(case, name) for case, name in PAIRS if name not in ATTACHING.get(case, {})]
SHOWN = [(case, name) for case, name in SERVED if name not in PICTURES.get(case, {})]


def method(case: str, params: dict[str, Any] | None = None) -> Any:
    """The method of a case, at about half unless told."""
    return tithe.method(CASES[case].slug or case, **(CASES[case].half if params is None else params))


def plainly(error: Exception, text: str) -> bool:
    """Whether the message says why, in a single line."""
    return re.search(text, str(error)) is not None and "\n" not in str(error) and len(str(error)) < 240


def test_every_visual_method_is_here() -> None:
    visual = {
        slug for slug, one in tithe.factories().items() if one.card.family == "vision" and "vlm" in one.card.hosts
    }
    assert {case.slug or name for name, case in CASES.items()} == visual
    assert set(ATTACHING) | set(PICTURES) | set(MOVING) <= set(CASES)


@pytest.mark.parametrize(("case", "name"), [pair for pair in PAIRS if pair not in SERVED])
def test_refused_when_attached(case: str, name: str) -> None:
    with pytest.raises((Refused, BadInput)) as error:
        tithe.on(hosts.made(name), method(case))
    assert plainly(error.value, ATTACHING[case][name])
    assert torch.equal(hosts.forward(name, hosts.turn(name, "text")), hosts.plain(name, "text"))


EARLY: dict[str, dict[str, Any]] = {
    "adatoken-3d": {"layer": (0,)},
    "fastv": {"layer": 1},
    "lvlm-csp": {"layer": (0, 1, 2)},
    "pyramiddrop": {"layer": 1},
    "rcp": {"layer": 1},
    "sparsevlm": {"layer": (0,), "keep": (0.5,)},
    "transprune": {"layer": (0,), "keep": (0.5,), "observed": (0,)},
}


@pytest.mark.parametrize("slug", EARLY)
def test_tokens_that_later_layers_add_to_are_not_dropped_before(slug: str) -> None:
    """Qwen3-VL adds features of pictures behind each of its first layers, at the places of all their tokens."""
    with pytest.raises((Refused, BadInput)) as error:
        tithe.on(hosts.made("qwen3_vl"), tithe.method(slug, **EARLY[slug]))
    assert plainly(error.value, "too early; the earliest layer before which qwen3_vl can drop tokens is 2")
    assert torch.equal(hosts.forward("qwen3_vl", hosts.turn("qwen3_vl", "text")), hosts.plain("qwen3_vl", "text"))


@pytest.mark.parametrize(("case", "name"), [pair for pair in SERVED if pair not in SHOWN])
def test_refused_when_it_sees_what_it_cannot_serve(case: str, name: str) -> None:
    """The run goes on with what it can serve, and the model is as it was."""
    refused = []
    with tithe.on(hosts.made(name), method(case)):
        for turn in (hosts.turn(name, "ragged"), hosts.pictures(name, hosts.SECOND)):
            try:
                hosts.forward(name, turn)
            except Refused as error:
                refused.append(error)
            assert torch.equal(hosts.forward(name, hosts.turn(name, "text")), hosts.plain(name, "text"))
    assert refused and all(plainly(error, PICTURES[case][name]) for error in refused)
    assert torch.equal(hosts.forward(name, hosts.turn(name, "ragged")), hosts.plain(name, "ragged"))


@pytest.mark.parametrize(("case", "name"), SERVED)
def test_nothing_to_do_changes_nothing(case: str, name: str) -> None:
    """With all kept, by share or by count, and without a picture, logits are the untouched model's bit by bit."""
    assert torch.equal(hosts.under(name, method(case), "text"), hosts.plain(name, "text"))
    kept = (CASES[case].none, CASES[case].many) if (case, name) not in LEFT_OUT else ()
    for params in filter(None, kept):
        for kind in ("pictures", "clip") if name in CLIPS else ("pictures",):
            try:
                got = hosts.under(name, method(case, params), kind)
            except Refused as error:
                assert plainly(error, PICTURES.get(case, {}).get(name, "served"))
            else:
                assert torch.equal(got, hosts.plain(name, kind)), params
    assert torch.equal(hosts.forward(name, hosts.turn(name, "pictures")), hosts.plain(name, "pictures"))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), SHOWN)
def test_a_row_of_a_batch_is_what_it_is_alone(case: str, name: str) -> None:
    """Rows with two, no and one picture, a word, then one, one and none on the same cache; and by ``generate``."""
    turns = [hosts.pictures(name, hosts.FIRST), hosts.pictures(name, hosts.SECOND, 1)]
    together = hosts.talk(name, method(case), turns)
    # A sliding window is as long as its columns, the dead ones between two turns among them.
    padded = (False, name == "gemma3")
    rows = range(len(hosts.FIRST))
    alone = [
        hosts.talk(name, method(case), [turn.alone(row, pads) for turn, pads in zip(turns, padded, strict=True)])
        for row in rows
    ]
    assert hosts.apart(together, alone) < TOLERANCE
    assert any(kept < seen for counts in together.counts for events in counts.values() for kept, seen in events)
    assert float((hosts.generated(name, method(case), turns[0]) - together.logits[0]).abs().max()) < TOLERANCE
    assert torch.equal(hosts.forward(name, turns[0]), hosts.plain(name, "ragged"))


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["clips", "mixed"])
@pytest.mark.parametrize(("case", "name"), [(case, name) for case, name in SERVED if name in CLIPS])
def test_a_row_of_clips_is_what_it_is_alone(case: str, name: str, seen: str) -> None:
    turn = hosts.turn(name, seen)
    if name in (MOVING if seen == "mixed" else CLIPPED).get(case, {}):
        with tithe.on(hosts.made(name), method(case)), pytest.raises(Refused) as error:
            hosts.forward(name, turn)
        assert plainly(error.value, MOVING[case][name])
    else:
        together = hosts.talk(name, method(case), [turn])
        assert hosts.apart(together, [hosts.talk(name, method(case), [turn.alone(row)]) for row in (0, 1)]) < TOLERANCE
    assert torch.equal(hosts.forward(name, turn), hosts.plain(name, seen))


# -- image encoders ----------------------------------------------------------------------------------------------------

BLOCKS = {
    "ats": Case({"layer": 0}, {"layer": 0, "floor": 1.0}),
    "evit": budget(),
    "random-blocks": budget(),
    "tca": budget(),
    "token-transforming": budget(),
    "tome": budget(),
    "zero-tprune": Case({"keep": 0.5}, {"keep": 1.0, "similar": 0}, {"keep": 10_000, "similar": 0}),
}
NO_LOGITS = {name: "reads logits" for name in VITS if name != "siglip"}
CLASSLESS = {"siglip": "no CLS token"}
BLOCKED = {"ats": CLASSLESS, "evit": CLASSLESS, "tca": {**NO_LOGITS, **CLASSLESS}}


def test_every_method_inside_encoders_is_here() -> None:
    visual = {
        slug for slug, one in tithe.factories().items() if one.card.family == "vision" and "vit" in one.card.hosts
    }
    assert set(BLOCKS) == visual


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("case", BLOCKS)
def test_inside_image_encoders(case: str, name: str) -> None:
    """Served: all kept is untouched and an image in a batch is what it is alone; else refused in one line."""
    untouched, images = hosts.features(name), range(3)
    text = BLOCKED.get(case, {}).get(name)
    if text is not None:
        with pytest.raises(Refused) as error:
            hosts.features(name, tithe.method(case, **BLOCKS[case].half))
        assert plainly(error.value, text)
    else:
        for params in filter(None, (BLOCKS[case].none, BLOCKS[case].many)):
            assert torch.equal(hosts.features(name, tithe.method(case, **params)), untouched), params
        half = tithe.method(case, **BLOCKS[case].half)
        together, counts = hosts.seen(name, half)
        for image in images:
            alone, held = hosts.seen(name, half, image)
            assert held == [kept[image : image + 1] for kept in counts]
            assert float((together[image, : alone.shape[1]] - alone[0]).abs().max()) < TOLERANCE
        assert together.shape[1] < untouched.shape[1]
    assert torch.equal(hosts.features(name), untouched)
