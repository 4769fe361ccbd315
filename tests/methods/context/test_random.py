from __future__ import annotations

import torch
from methods.context.contract import contract, does_not_compound, generate, kept_sets, padded

from tithe.scores.random import hashed
from tithe.types import Tokens


def tokens(length: int, pads: int = 0) -> Tokens:
    cols = torch.arange(length)[None, None].int()
    return Tokens(cols, cols >= pads, torch.tensor([length - pads]))


def test_contract() -> None:
    contract("random")
    does_not_compound("random")


def test_budget_to_the_token_and_heads_and_layers_differ() -> None:
    _, events = generate("random", padded(), keep=0.3)
    assert {event.heads_kept for event in events} == {((12, 12), (8, 8))}
    sets = [tuple(cols) for heads in kept_sets(events, 0) for cols in heads]
    assert len(set(sets)) == len(sets) == 6


def test_seeds_differ_and_repeat() -> None:
    sets = [kept_sets(generate("random", padded(), seed=seed)[1], 0) for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


def test_scores_do_not_know_the_padding() -> None:
    assert torch.equal(hashed(tokens(50), 3, 2, 5), hashed(tokens(61, 11), 3, 2, 5)[..., 11:])


def test_scores_are_uniform() -> None:
    score = hashed(tokens(40_000), 2, 0, 0)
    cells = torch.histc(score, 20, 0.0, 1.0)
    assert float(((cells - 4000) ** 2 / 4000).sum()) < 43.8  # chi-square, 19 degrees of freedom, p = .001
    near = torch.corrcoef(torch.stack([score[0, 0, :-1], score[0, 0, 1:], score[0, 1, 1:]]))
    assert float((near - torch.eye(3)).abs().max()) < 0.02
