"""Every vision-language family against the masked oracle, by both routes, in every way of calling it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from masked_vision import (
    FIRST_LAYER,
    METHODS,
    TOLERANCE,
    drawn_columns,
    drawn_patches,
    drawn_tower,
    generate,
    talk,
)
from tiny_vision import VLMS, prompt
from transformers import PreTrainedModel

import tithe

TURNS: dict[str, list[list[int]]] = {
    "single": [[1]],
    "padded": [[1, 1]],
    "several images": [[2, 1]],
    "three images": [[3]],
    "second turn": [[1, 1], [1, 1]],
    "second turn without image": [[1, 2], [0, 0]],
    "three turns": [[1, 0], [1, 2], [0, 0]],
}
BEAMS = {"num_beams": 3, "length_penalty": 0.0, "do_sample": False}
GENERATED: dict[str, tuple[list[list[int]], dict[str, Any]]] = {
    "padded": ([[1, 1]], {"do_sample": False}),
    "several images": ([[2, 1]], {"do_sample": False}),
    "second turn": ([[1, 1], [1, 1]], {"do_sample": False}),
    "second turn without image": ([[1, 2], [0, 0]], {"do_sample": False}),
    "beams": ([[2, 1]], BEAMS),
    "beams, a row without image": ([[0, 2]], BEAMS),
    "sampling": ([[1, 2]], {"do_sample": True, "temperature": 1.3}),
    "samples of a row": ([[1, 2]], {"do_sample": True, "num_return_sequences": 2}),
}
FAST = {
    ("forward", "encoder", "padded", "sdpa"),
    ("forward", "encoder", "three images", "eager"),
    ("forward", "encoder", "three turns", "sdpa"),
    ("forward", "tower", "several images", "sdpa"),
    ("forward", "layer", "several images", "sdpa"),
    ("forward", "layer", "three turns", "eager"),
    ("forward", "input", "second turn without image", "sdpa"),
    ("generate", "encoder", "second turn", "eager"),
    ("generate", "encoder", "beams, a row without image", "sdpa"),
    ("generate", "encoder", "samples of a row", "sdpa"),
    ("generate", "tower", "beams", "sdpa"),
    ("generate", "layer", "second turn", "sdpa"),
    ("generate", "layer", "beams", "eager"),
}
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for route, scenarios in (("forward", TURNS), ("generate", GENERATED))
    for method in METHODS
    for scenario in scenarios
    for attention in ("sdpa", "eager")
    for case in [(route, method, scenario, attention)]
]


@pytest.fixture(scope="module", params=VLMS)
def host(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    return request.param, VLMS[request.param].model()


@pytest.mark.parametrize(("route", "method", "scenario", "attention"), CASES)
def test_logits_are_those_of_the_masked_model(
    host: tuple[str, PreTrainedModel], route: str, method: str, scenario: str, attention: str
) -> None:
    name, model = host
    model.set_attn_implementation(attention)
    made, first = METHODS[method](keep=0.5), FIRST_LAYER[method]
    if route == "forward":
        assert talk(name, model, made, TURNS[scenario], first) <= TOLERANCE
    else:
        torch.manual_seed(1)
        turns, how = GENERATED[scenario]
        assert generate(name, model, made, turns, first, **how) <= TOLERANCE


def test_the_oracle_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose events are misread must disagree with the oracle, else the oracle would prove nothing."""
    import masked_vision

    right = masked_vision.dropped
    monkeypatch.setattr(masked_vision, "dropped", lambda *args: right(*args).roll(1, 1))
    assert talk("llava", VLMS["llava"].model(), drawn_patches(keep=0.5), [[1]]) > 1e-2


def test_every_route_chooses_alike(host: tuple[str, PreTrainedModel]) -> None:
    """By attention of the tower: a forward, ``generate``, and each beam keep the same tokens of an image."""
    name, model = host
    model.set_attn_implementation("sdpa")
    inputs = prompt(name, model, [2, 1])
    chosen: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for route, beams in (("forward", 0), ("generate", 1), ("generate", 2)):
            with tithe.on(model, drawn_tower(keep=0.5), level="history") as run:
                if beams:
                    model.generate(**inputs, num_beams=beams, max_new_tokens=1, do_sample=False, pad_token_id=0)
                else:
                    model(**inputs)
            chosen[f"{route} {beams}"] = [event.keep for event in run.trace.history if event.keep is not None]
    plain = chosen["forward 0"]
    assert len(plain) == 3 and any(not torch.equal(plain[0], keep) for keep in plain[1:])
    for route, order in (("generate 1", [0, 1, 2]), ("generate 2", [0, 1, 0, 1, 2, 2])):
        assert all(torch.equal(a, plain[n]) for a, n in zip(chosen[route], order, strict=True))


def test_keeping_everything_is_the_untouched_model(host: tuple[str, PreTrainedModel]) -> None:
    name, model = host
    model.set_attn_implementation("sdpa")
    inputs = prompt(name, model, [2, 1])
    generated: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        plain = model.generate(**inputs, **generated)
        with tithe.on(model, [drawn_patches(keep=1.0), drawn_columns(keep=1.0)]):
            assert torch.equal(model.generate(**inputs, **generated), plain)


def test_detaching_restores_the_model_bit_by_bit(host: tuple[str, PreTrainedModel]) -> None:
    name, model = host
    inputs = prompt(name, model, [2, 1])
    before = {key: value for key, value in vars(model.base_model).items() if not key.startswith("_")}
    own = [copy.copy(m.config._attn_implementation) for m in (model, model.get_decoder(), model.get_encoder("image"))]
    with torch.no_grad():
        plain = model(**inputs).logits
        with tithe.on(model, drawn_patches(keep=0.3)):
            assert model(**inputs).logits.shape[1] < plain.shape[1]
        assert torch.equal(model(**inputs).logits, plain)
    after = {key: value for key, value in vars(model.base_model).items() if not key.startswith("_")}
    assert before.keys() - {"rope_deltas"} == after.keys() - {"rope_deltas"}
    assert own == [m.config._attn_implementation for m in (model, model.get_decoder(), model.get_encoder("image"))]
    hooked = [m for m in model.modules() if m._forward_pre_hooks]
    assert not hooked


def test_fewer_tokens_are_read_and_held(host: tuple[str, PreTrainedModel]) -> None:
    name, model = host
    inputs = prompt(name, model, [2, 1])
    with torch.no_grad(), tithe.on(model, drawn_patches(keep=0.5)) as run:
        model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
        report = run.report()
    given = sum(sum(event.seen) for event in run.trace.events)
    dropped = given - int(sum(sum(event.kept) for event in run.trace.events))
    assert given == int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert dropped >= given // 2
    assert report.flops < report.flops_full
    if name != "gemma3":
        columns = int(inputs["attention_mask"].sum()) + 2
        assert report.kv_live * columns == report.kv_full * (columns - dropped)
