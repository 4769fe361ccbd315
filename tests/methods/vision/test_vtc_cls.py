from __future__ import annotations

import pytest
from methods.vision.contract import (
    attentions,
    beats_random,
    contract,
    decide,
    from_rows,
    generated,
    kept,
    model,
    prompts,
    shown,
    tokens,
    vector,
)

import tithe
from tithe.errors import BadInput

VECTOR, META = vector("vtc-cls")
CASES = list(enumerate(META["parameters"]["cases_startlayer_tokennum"]))


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_as_the_authors(case: int, given: tuple[int, int]) -> None:
    start, count = given
    evidence = shown([from_rows(rows) for rows in VECTOR["attention_cls"]])
    chosen = tithe.method("vtc-cls", keep=count, layer=start)
    assert kept(decide(chosen, evidence, tokens(576))) == VECTOR[f"kept_{case}"].tolist()
    score = chosen.steps[0].score
    assert score is not None
    assert score(evidence, tokens(576))[0, 0].tolist() == pytest.approx(VECTOR[f"scores_{case}"].tolist(), abs=1e-6)


def test_end_to_end_against_eager_attention() -> None:
    inputs = prompts([1, 2])
    _, run = generated("vtc-cls", inputs, keep=5, layer=0)
    below = attentions(inputs["pixel_values"])[:-1]
    rows = sum(layer.double()[:, :, 0, 1:].mean(1) for layer in below)
    for row, event in zip(rows.tolist(), run.trace.events, strict=True):
        assert event.keep[0, 0].nonzero()[:, 0].tolist() == sorted(sorted(range(16), key=lambda n: -row[n])[:5])


def test_starts_at_two_thirds_of_the_tower() -> None:
    layers = [from_rows(rows) for rows in VECTOR["attention_cls"]]
    scores = [
        tithe.method("vtc-cls", layer=start).steps[0].score(shown(layers), tokens(576))  # type: ignore[misc]
        for start in (None, 4)
    ]
    assert scores[0].equal(scores[1])


def test_layers_without_an_effect_are_refused() -> None:
    with tithe.on(model(), "vtc-cls", layer=2), pytest.raises(BadInput, match="0 to 1"):
        model()(**prompts())


def test_reads_better_than_random_tokens() -> None:
    beats_random("vtc-cls")


def test_contract() -> None:
    contract("vtc-cls")
