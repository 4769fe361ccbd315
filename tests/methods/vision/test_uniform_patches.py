from __future__ import annotations

from methods.vision.contract import contract, decide, generated, kept, prompts, shown, tokens

from tithe import method


def test_even_on_the_grid() -> None:
    selection = decide(method("uniform-patches", keep=9), shown([]), tokens(144, (12, 12)))
    assert kept(selection) == [row * 12 + col for row in (2, 6, 10) for col in (2, 6, 10)]


def test_along_the_sequence_without_a_grid() -> None:
    assert kept(decide(method("uniform-patches", keep=4), shown([]), tokens(20))) == [2, 7, 12, 17]


def test_every_image_of_a_prompt() -> None:
    _, run = generated("uniform-patches", prompts([1, 2]), keep=4)
    assert [event.keep[0, 0].nonzero()[:, 0].tolist() for event in run.trace.events] == [[5, 7, 13, 15]] * 3


def test_contract() -> None:
    contract("uniform-patches")
