from __future__ import annotations

import torch
from methods.vision.contract import contract, decide, generated, kept, prompts, right, shown, tokens

from tithe import method


def test_exactly_the_budget_and_never_the_same_for_another_seed() -> None:
    sets = [kept(decide(method("random-patches", keep=29, seed=seed), shown([]), tokens(144))) for seed in range(6)]
    assert {len(one) for one in sets} == {29}
    assert len({tuple(one) for one in sets}) == 6
    often = torch.zeros(144)
    for seed in range(400):
        often[kept(decide(method("random-patches", keep=29, seed=seed), shown([]), tokens(144)))] += 1
    spread = (29 / 144 * (1 - 29 / 144) / 400) ** 0.5
    assert ((often / 400 - 29 / 144).abs() < 5 * spread).all()


def test_the_language_model_sees_only_those() -> None:
    inputs = prompts([1, 2])
    _, run = generated("random-patches", inputs, keep=0.25)
    assert [event.kept for event in run.trace.events] == [(4,)] * 3
    assert {event.saving for event in run.trace.events} == {"real"}
    assert run.stream is None and run.cache.layers[0].store.view().valid.sum(-1).flatten().tolist() == [
        int(row.sum()) - 12 * images + 2 for row, images in zip(inputs["attention_mask"], (1, 2), strict=True)
    ]


def test_fewer_tokens_answer_fewer_questions() -> None:
    assert right("random-patches", keep=1.0) >= 0.9 > 0.7 > right("random-patches", keep=18)


def test_contract() -> None:
    contract("random-patches")
