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
    prompts,
    shown,
    tokens,
    vector,
)

from tithe import method

VECTOR, _ = vector("fastervlm")


@pytest.mark.parametrize("count", [14, 36, 58])
@pytest.mark.parametrize("image", [0, 1])
def test_same_tokens_as_the_authors(count: int, image: int) -> None:
    evidence = shown([from_rows(rows) for rows in VECTOR["attention_cls"]], image)
    selection = decide(method("fastervlm", keep=count), evidence, tokens(144))
    assert kept(selection) == VECTOR[f"mask_{count}"][image].nonzero()[:, 0].tolist()


def test_end_to_end_against_eager_attention() -> None:
    inputs = prompts([1, 2])
    _, run = generated("fastervlm", inputs, keep=5)
    rows = attentions(inputs["pixel_values"])[-2].double()[:, :, 0, 1:].mean(1)
    assert len(run.trace.events) == 3
    for row, event in zip(rows.tolist(), run.trace.events, strict=True):
        best = sorted(sorted(range(16), key=lambda place: -row[place])[:5])
        assert event.keep[0, 0].nonzero()[:, 0].tolist() == best
        assert event.scores[0, 0].tolist() == pytest.approx(row, abs=1e-6)


def test_reads_better_than_random_tokens() -> None:
    beats_random("fastervlm")


def test_contract() -> None:
    contract("fastervlm")
