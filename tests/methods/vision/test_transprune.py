from __future__ import annotations

import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts, vector
from methods.vision.inside import FIRST, SIZE, Loops, answered, by_chance, columns, play
from torch import Tensor

import tithe
from tithe.errors import BadInput, Refused
from tithe.scores.transition import transition
from tithe.seams.transitions import change, modules

VECTOR, META = vector("transprune")
CASES = list(enumerate(META["parameters"]["cases_layers_ratios_observed"]))


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_and_outputs_as_the_authors(case: int, given: tuple[list[int], list[float], list[int]]) -> None:
    layers, shares, observed = given
    behind = tuple(layer - 1 for layer in layers)
    last, run, _ = play(tithe.method("transprune", keep=tuple(shares), layer=behind, observed=tuple(observed)))
    assert len(run.trace.events) == len(layers)
    for stage, event in enumerate(run.trace.events):
        assert columns(event) == VECTOR[f"kept_{case}_{stage}"].tolist()
    assert torch.allclose(last, VECTOR[f"last_hidden_{case}"], atol=1e-5)


def test_without_attention_the_score_is_the_authors_sum_of_transitions() -> None:
    _, run, _ = play(tithe.method("transprune", keep=(8,), layer=(1,), observed=(0, 1), attention=False))
    (event,) = run.trace.events
    image = slice(FIRST, FIRST + SIZE)
    both = (VECTOR["transition_2_0"] + VECTOR["transition_2_1"])[image]
    assert torch.allclose(event.scores[0, 0, image], both / both.sum(), atol=1e-6)
    wanted = (both.topk(8).indices + FIRST).sort().values.tolist()
    assert [c for c in columns(event) if FIRST <= c < FIRST + SIZE] == wanted


def test_one_budget_is_that_of_the_last_stage() -> None:
    _, run, _ = play(tithe.method("transprune", keep=0.125, layer=(0, 1, 2), observed=(0, 1, 2)))
    assert [sum(FIRST <= c < FIRST + SIZE for c in columns(event)) for event in run.trace.events] == [31, 22, 4]


def moved(parts: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """Transitions of attention and MLP by hand."""
    total = torch.zeros(len(parts[0][0]), dtype=torch.float64)
    for before, after in parts:
        turned = torch.tensor(
            [1 - float(b @ a / (b.norm() * a.norm())) for b, a in zip(before, after, strict=True)], dtype=torch.float64
        )
        share = turned.exp() / turned.exp().sum()
        total += share * after.norm(dim=1) / before.norm(dim=1)
    return total


def test_a_padded_batch_of_several_images_against_loops() -> None:
    loops = Loops([1, 2])
    given = {"keep": (0.75, 0.25), "layer": (0, 2), "observed": (0, 1, 2)}
    out, run = generated("transprune", prompts([1, 2]), **given)
    events = {event.layer: event for event in run.trace.events}
    for row in range(2):
        image = loops.image[row].nonzero()[:, 0].tolist()

        def before(
            index: int, x: Tensor, cols: Tensor, row: int = row, image: list[int] = image
        ) -> tuple[Tensor, Tensor]:
            if index not in (1, 3):
                return x, cols
            places = [place for place, col in enumerate(cols.tolist()) if col in image]
            ttv = torch.zeros(len(cols), dtype=torch.float64)
            for layer in range(index):
                known = dict(zip(loops.cols[layer].tolist(), moved(loops.parts[layer]).tolist(), strict=True))
                ttv += torch.tensor([known[col] for col in cols.tolist()], dtype=torch.float64)
            text = [place for place in range(len(cols)) if cols[place] > image[-1]]
            iga = loops.ahead(index, x, cols, row)[:, text].mean((0, 1))
            score = ttv[places] / (ttv[places].sum() + 1e-8) + iga[places] / (iga[places].sum() + 1e-8)
            count = int(len(image) * (0.75 if index == 1 else 0.25))
            best = {places[one] for one in score.topk(count).indices.tolist()}
            stay = [place for place in range(len(cols)) if place in best or place not in places]
            assert columns(events[index], row) == cols[stay].tolist()
            return x[stay], cols[stay]

        assert torch.allclose(out.logits[0][row].double(), loops.row(row, before), atol=1e-4)


def test_padding_takes_no_share() -> None:
    before, after = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[False, False, True, True, True, True]])
    alone = transition(change(before[:, 2:], after[:, 2:]), valid[:, 2:])
    assert torch.allclose(transition(change(before, after), valid)[:, 2:], alone)


def test_layers_whose_modules_cannot_be_told_are_refused() -> None:
    with pytest.raises(Refused, match="one attention and one MLP"):
        modules(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_it_beats_random_tokens() -> None:
    """Two hops on the trained LLaVA of four layers, by the stages of the paper."""
    ours = tithe.method("transprune")
    assert answered(ours) > answered(by_chance(ours)) + 0.2


def test_budgets_and_layers_must_match() -> None:
    with pytest.raises(BadInput, match="one budget for each layer"):
        tithe.method("transprune", keep=(0.5, 0.2))


def test_contract() -> None:
    assert model()
    contract("transprune")
