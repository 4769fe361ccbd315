from __future__ import annotations

from itertools import combinations

import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts
from methods.vision.inner import features, kinds, whole
from torch import Tensor

from tithe import method
from tithe.errors import BadInput
from tithe.selections.representative import represented
from tithe.types import Method


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def worth(rows: Tensor, bonus: list[float], chosen: list[int]) -> float:
    """What a subset is worth: how well it stands for all, and its own share."""
    likest = [max((1 + cosine(rows[x], rows[y])) / 2 for y in chosen) for x in range(len(rows))]
    return sum(likest) + sum(bonus[y] for y in chosen)


def greedily(rows: Tensor, bonus: list[float], count: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(left, key=lambda i: worth(rows, bonus, [*chosen, i])))
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(6))
def test_choice_is_greedy_and_near_the_best(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows, bonus = torch.randn(12, 4, generator=draw, dtype=torch.float64), torch.rand(12, generator=draw).double()
    unit = rows / rows.norm(dim=-1, keepdim=True)
    ours = represented(unit, bonus, 4).nonzero()[:, 0].tolist()
    assert ours == greedily(rows, bonus.tolist(), 4)
    best = max(worth(rows, bonus.tolist(), list(some)) for some in combinations(range(12), 4))
    assert worth(rows, bonus.tolist(), ours) >= (1 - 1 / torch.e) * best


def test_lazy_choice_is_the_greedy_one_over_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(150, 5, generator=draw, dtype=torch.float64), dim=-1)
    bonus = torch.rand(150, generator=draw).double()
    like = (1 + unit @ unit.T) / 2
    best, chosen = torch.zeros(150, dtype=torch.float64), torch.zeros(150, dtype=torch.bool)
    for _ in range(60):
        gain = (like - best).clamp(min=0).sum(-1) + bonus
        chosen[gain.masked_fill(chosen, -torch.inf).argmax()] = True
        best = like[chosen].amax(0)
    for block in (1, 7, 64):
        monkeypatch.setattr("tithe.selections.representative.BLOCK", block)
        assert torch.equal(represented(unit, bonus, 60), chosen)


def pictures(inputs: dict[str, Tensor], row: int) -> list[list[int]]:
    """The columns of each image of a row."""
    _, image = kinds(inputs, row)
    return [image[start : start + 16] for start in range(0, len(image), 16)]


def test_alignment_and_first_choice() -> None:
    inputs = prompts([1, 3])
    _, run = generated("catp", inputs, keep=0.5, layer=2)
    events = [event for event in run.trace.events if event.point == "encoder"]
    table, images = model().get_input_embeddings().weight.detach(), iter(zip(features(inputs), events, strict=True))
    for row in range(2):
        text, _ = kinds(inputs, row)
        places = pictures(inputs, row)
        for number, columns in enumerate(places):
            end = places[number + 1][0] if number + 1 < len(places) else inputs["input_ids"].shape[1]
            words = inputs["input_ids"][row, [col for col in text if columns[-1] < col < end]]
            mean = table[words].double().mean(0)
            rows, event = next(images)
            fit = [(1 + cosine(rows[i], mean)) / 2 for i in range(16)]
            assert torch.allclose(event.scores[0, 0].double(), torch.tensor(fit).double(), atol=1e-5)
            chosen = greedily(rows.double(), [0.7 * one for one in fit], 12)
            assert event.keep[0, 0].nonzero()[:, 0].tolist() == chosen


def only(step: int) -> Method:
    """One inner stage of CATP by itself, so that the untouched model shows what it reads."""
    made = method("catp", keep=0.25, layer=2, relevance=0.6)
    return Method(made.card, made.params, made.steps[step : step + 1])


def mean_of(hidden: Tensor, columns: list[int]) -> Tensor:
    return hidden[columns].double().mean(0)


def test_examples_by_growing_attention_and_likeness_to_the_question() -> None:
    inputs = prompts([2, 3])
    shown = whole(inputs)
    _, run = generated(only(1), inputs)
    (event,) = run.trace.events
    for row in range(2):
        hidden = shown.hidden_states[2][row]
        first, second = (shown.attentions[layer][row].double().mean(0)[-1] for layer in (0, 1))
        *examples, asked = pictures(inputs, row)
        question = list(range(asked[0], hidden.shape[0]))
        columns = [col for picture in examples for col in picture]
        wanted = [
            max(0.0, float(second[col] - first[col])) + 0.6 * cosine(hidden[col], mean_of(hidden, question))
            for col in columns
        ]
        place = {int(col): at for at, col in enumerate(event.cols[row, 0])}
        ours = event.scores[row, 0, [place[col] for col in columns]]
        assert torch.allclose(ours.double(), torch.tensor(wanted).double(), atol=1e-5)
        best = sorted(range(len(columns)), key=lambda at: -wanted[at])[: int(len(columns) * 0.4)]
        kept = {int(col) for col, stays in zip(event.cols[row, 0], event.keep[row, 0], strict=True) if stays}
        assert kept & set(columns) == {columns[at] for at in best}
        assert set(asked) <= kept and set(kinds(inputs, row)[0]) <= kept


def test_the_question_by_likeness_to_the_examples() -> None:
    inputs = prompts([1, 3])
    shown = whole(inputs)
    _, run = generated(only(2), inputs)
    (event,) = run.trace.events
    for row in range(2):
        hidden = shown.hidden_states[3][row]
        text, image = kinds(inputs, row)
        *examples, asked = pictures(inputs, row)
        context = list(range(image[0], asked[0])) or [col for col in text if col > asked[-1]]
        wanted = [cosine(hidden[col], mean_of(hidden, context)) for col in asked]
        kept = {int(col) for col, stays in zip(event.cols[row, 0], event.keep[row, 0], strict=True) if stays}
        best = sorted(range(16), key=lambda at: -wanted[at])[:6]
        assert kept & set(asked) == {asked[at] for at in best}
        assert {col for picture in examples for col in picture} <= kept


def test_counts_stage_by_stage() -> None:
    inputs = prompts([1, 3])
    out, _ = generated("catp", inputs, keep=0.25, layer=2)
    for row, images in enumerate((1, 3)):
        text = len(kinds(inputs, row)[0])
        held = [int(layer.store.view().valid[row, 0].sum()) - text - 2 for layer in out.past_key_values.layers]
        examples = 10 * (images - 1)
        assert held == [10 * images, 10 * images, int(examples * 0.4) + 10, int(examples * 0.4) + 4]


@pytest.mark.parametrize("wrong", [{"keep": 12}, {"layer": 1}])
def test_parameters(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        method("catp", **wrong)


def test_contract() -> None:
    contract("catp", layer=2)
