from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts, tokens
from methods.vision.inside import FIRST, SIZE, Loops, columns, play
from tiny_vision import VLMS, prompt
from torch import Tensor

import tithe
from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.narrowed import Stage
from tithe.selections.runs import Leaders


@pytest.mark.parametrize(("n", "keep"), [(16, 4), (16, 5), (36, 7), (5, 5), (5, 1)])
def test_leaders_stand_at_even_strides(n: int, keep: int) -> None:
    given = tokens(n)
    chosen = Leaders(Stage(Budget(keep)))(torch.zeros(1, 1, n), given)
    wanted = [one * (n // keep) for one in range(keep)]
    assert chosen.keep[0, 0].nonzero()[:, 0].tolist() == wanted
    assert chosen.dest is not None
    for place in range(n):
        leader = max(one for one in wanted if one <= place)
        assert chosen.dest[0, 0, place] == (-1 if place == leader else leader)


def test_a_padded_batch_of_several_images_against_loops() -> None:
    """Layer 1 reads the leaders alone, layer 2 everything again, layer 3 what the last token would look at."""
    loops = Loops([1, 2])
    out, run = generated("lvlm-csp", prompts([1, 2]), keep=(3, 2), layer=(0, 1, 2))
    events = {event.layer: event for event in run.trace.events}
    for row in range(2):
        image = loops.image[row].nonzero()[:, 0].tolist()
        aside: list[Tensor] = []

        def before(
            index: int, x: Tensor, cols: Tensor, row: int = row, image: list[int] = image, aside: list[Tensor] = aside
        ) -> tuple[Tensor, Tensor]:
            places = [place for place, col in enumerate(cols.tolist()) if col in image]
            if index == 1:
                stride = len(image) // 3
                leaders = [places[k * stride] for k in range(3)]
                flow = [place for place in range(len(cols)) if place in leaders or place not in places]
                leads = torch.tensor([max([p for p in leaders if p <= place], default=0) for place in range(len(cols))])
                aside += [x, cols, leads, torch.tensor(flow)]
                assert columns(events[1], row) == cols[flow].tolist()
                return x[flow], cols[flow]
            if index == 2:
                old, every, leads, flow = aside
                gained = {place: x[k] - old[place] for k, place in enumerate(flow.tolist())}
                back = [
                    x[flow.tolist().index(place)] if place in gained else old[place] + gained[int(leads[place])]
                    for place in range(len(every))
                ]
                return torch.stack(back), every
            if index == 3:
                mass = loops.ahead(3, x, cols, row)[:, -1].mean(0)
                best = sorted(places, key=lambda place: -float(mass[place]))[:2]
                flow = [place for place in range(len(cols)) if place in best or place not in places]
                assert columns(events[3], row) == cols[flow].tolist()
                return x[flow], cols[flow]
            return x, cols

        assert torch.allclose(out.logits[0][row].double(), loops.row(row, before), atol=1e-4)
    held = [layer.store.view().valid.sum(-1).flatten().tolist() for layer in run.cache.layers]
    full = [int(row.sum()) + 2 for row in loops.inputs["attention_mask"]]
    assert held == [full, [full[0] - 13, full[1] - 29], full, [full[0] - 14, full[1] - 30]]


def test_the_defaults_save_what_the_paper_states() -> None:
    """65% of the FLOPs of image tokens, by layers of 32: one, 15 coarse ones, 8 fine ones, 8 to the end."""
    steps = tithe.method("lvlm-csp").steps
    behind = [int(float(step.site.layer) * 32) for step in steps]
    coarse, last = (steps[k].select.stage.budget.keep if k == 0 else steps[k].select.budget.keep for k in (0, 2))
    layers = [behind[0] + 1, behind[1] - behind[0], behind[2] - behind[1], 31 - behind[2]]
    share = (layers[0] + layers[1] * coarse + layers[2] + layers[3] * last) / 32
    assert sum(layers) == 32 and 0.64 < 1 - share < 0.67


def test_recorded_prompt_counts() -> None:
    _, run, entering = play(tithe.method("lvlm-csp", keep=(6, 2), layer=(0, 1, 2)))
    text = 48 - SIZE
    assert [len(entering[layer]) for layer in range(5)] == [48, text + 6, 48, text + 2, text + 2]
    (first, *_) = run.trace.events
    assert [c for c in columns(first) if FIRST <= c < FIRST + SIZE] == [FIRST + 6 * k for k in range(6)]


def test_qwen_tokens_come_back_at_their_own_positions() -> None:
    one = VLMS["qwen2_5_vl"].model()
    inputs = prompt("qwen2_5_vl", one, [1, 2])
    given: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given.append(kwargs["position_embeddings"][0])

    def read(method: Any) -> Tensor:
        with tithe.on(one, method) if method else nullcontext():
            handles = [
                layer.register_forward_pre_hook(note, with_kwargs=True) for layer in one.model.language_model.layers
            ]
            with torch.no_grad():
                logits = one(**inputs).logits[:, -1]
            for handle in handles:
                handle.remove()
        return logits

    plain = read(None)
    cut = read(tithe.method("lvlm-csp", keep=(0.5, 1.0), layer=(0, 1, 2)))
    whole, fewer, again = given[0], given[5], given[6]
    assert fewer.shape[-2] < whole.shape[-2] == again.shape[-2]
    for row, alive in enumerate(inputs["attention_mask"].bool()):
        assert torch.equal(again[..., row, alive, :], whole.expand_as(again)[..., row, alive, :])
    assert not torch.allclose(cut, plain, atol=1e-3)
    assert torch.allclose(read(tithe.method("lvlm-csp", keep=1.0, layer=(0, 1, 2))), plain, atol=5e-5)


def test_three_layers_are_needed() -> None:
    with pytest.raises(BadInput, match="three layers"):
        tithe.method("lvlm-csp", layer=(0, 1))


def test_contract() -> None:
    assert model()
    contract("lvlm-csp")
