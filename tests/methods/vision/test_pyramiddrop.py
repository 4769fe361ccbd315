from __future__ import annotations

import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts, vector
from methods.vision.inside import FIRST, SIZE, Loops, answered, by_chance, columns, play
from tiny_vision import VLMS, prompt
from torch import Tensor

import tithe
from tithe.errors import BadInput, Refused

VECTOR, META = vector("pyramiddrop")
CASES = list(enumerate(META["parameters"]["cases_layers_ratios"]))


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_and_outputs_as_the_authors(case: int, given: tuple[list[int], list[float]]) -> None:
    layers, shares = given
    last, run, _ = play(tithe.method("pyramiddrop", keep=tuple(shares), layer=tuple(layers)))
    for stage, event in enumerate(run.trace.events):
        assert columns(event) == VECTOR[f"kept_{case}_{stage}"].tolist()
    assert len(run.trace.events) == len(layers)
    assert torch.allclose(last, VECTOR[f"last_hidden_{case}"], atol=1e-5)


def test_one_share_is_taken_again_at_each_stage() -> None:
    _, run, _ = play(tithe.method("pyramiddrop", keep=0.5, layer=(1, 2, 3)))
    assert [sum(FIRST <= c < FIRST + SIZE for c in columns(event)) for event in run.trace.events] == [18, 9, 4]


def test_a_padded_batch_of_several_images_against_loops() -> None:
    """Logits of the first generated token, kept columns and counts of each row, against the tower written out."""
    loops = Loops([1, 2])
    out, run = generated("pyramiddrop", prompts([1, 2]))
    events = {event.layer: event for event in run.trace.events}
    for row in range(2):
        image = set(loops.image[row].nonzero()[:, 0].tolist())

        def before(
            index: int, x: Tensor, cols: Tensor, row: int = row, image: set[int] = image
        ) -> tuple[Tensor, Tensor]:
            if not index:
                return x, cols
            mass = loops.ahead(index, x, cols, row)[:, -1].mean(0)
            places = [place for place, col in enumerate(cols.tolist()) if col in image]
            best = sorted(places, key=lambda place: -float(mass[place]))[: int(len(image) * 0.5**index)]
            stay = [place for place in range(len(cols)) if place in best or place not in places]
            assert columns(events[index], row) == cols[stay].tolist()
            return x[stay], cols[stay]

        assert torch.allclose(out.logits[0][row].double(), loops.row(row, before), atol=1e-4)
    held = [layer.store.view().valid.sum(-1).flatten().tolist() for layer in run.cache.layers]
    alive = [int(row.sum()) + 2 for row in loops.inputs["attention_mask"]]
    assert held == [[a - 16 * n + int(16 * n * 0.5**k) for n, a in zip((1, 2), alive, strict=True)] for k in range(4)]


def test_qwen_with_deep_features_drops_only_where_it_may() -> None:
    one = VLMS["qwen3_vl"].model()
    with pytest.raises(Refused, match="earliest"):
        tithe.on(one, "pyramiddrop", layer=(1, 2, 3))
    inputs = prompt("qwen3_vl", one, [1, 2])
    with tithe.on(one, "pyramiddrop", layer=(2, 3), level="kept") as run, torch.no_grad():
        one.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    for event, share in zip(run.trace.events, (0.5, 0.25), strict=True):
        image = (inputs["input_ids"] == 5).sum(-1)
        text = inputs["attention_mask"].sum(-1) - image
        assert list(event.kept) == (text + (image * share).floor()).tolist()


def test_in_the_middle_it_beats_random_tokens() -> None:
    """Two hops on the trained LLaVA of four layers, three image tokens left from layer 2 on."""
    ours = tithe.method("pyramiddrop", keep=(0.05,), layer=(0.5,))
    assert answered(ours) > answered(by_chance(ours)) + 0.3


def test_budgets_and_layers_must_match() -> None:
    with pytest.raises(BadInput, match="one budget for each layer"):
        tithe.method("pyramiddrop", keep=(0.5, 0.2))


def test_contract() -> None:
    assert model()
    contract("pyramiddrop")
