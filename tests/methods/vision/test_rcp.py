from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods.vision.contract import asked, contract, generated, model, prompts
from methods.vision.inside import Loops, answered, attention, by_chance, columns, normal
from methods.vision.learnt import change, context, cross, drawn, film, pruner, remembered, saved
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.errors import BadInput, Refused
from tithe.scores.pruners import CrossAttention

WIDTH, LAYERS = 32, (1, 2, 3)
PARTS = {
    **{f"prune.{layer}": drawn(pruner(WIDTH), layer) for layer in LAYERS},
    **{f"repair.{layer}": drawn(film(WIDTH), 10 + layer) for layer in LAYERS},
    "context.0": drawn(context(WIDTH, 16), 20),
}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Random pruners and adapters for the tiny LLaVA."""
    return saved(tmp_path / "some.safetensors", "rcp", WIDTH, PARTS)


def test_the_pruner_in_loops() -> None:
    w, draw = PARTS["prune.1"], torch.Generator().manual_seed(0)
    states, received = torch.randn(2, 9, WIDTH, generator=draw), torch.rand(2, 9, generator=draw)
    received[0, 2] = 0.0
    image = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0, 0]]).bool()
    question = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1, 1]]).bool()
    got = CrossAttention(w)(states, image, question, received)
    for row in range(2):
        asking = states[row][question[row]].mean(0)
        wanted = cross(w, states[row][image[row]], asking, received[row][image[row]].tolist())
        assert torch.allclose(got[row][image[row]].double(), wanted, atol=1e-4)


class Repaired(Loops):
    """The tower by hand with cuts before its layers 1 to 3, and answers repaired."""

    @torch.no_grad()
    def play(self, row: int, keeps: list[float] | None, repair: bool, parts: dict[str, Any] | None) -> tuple[Any, Any]:
        """The logits of the last token of a row, and the columns kept at every cut."""
        alive = self.inputs["attention_mask"][row].bool()
        cols, pads = alive.nonzero()[:, 0], int((~alive).sum())
        x, image = self.embedded[row, alive], self.image[row].nonzero()[:, 0].tolist()
        made, kept = None, {}
        for index, layer in enumerate(self.tower.layers):
            if index in LAYERS:
                stay = self.cut(index, row, x, cols, image, keeps, parts)
                kept[index] = cols[stay].tolist()
                going = [place for place in range(len(cols)) if place not in stay]
                if parts is not None and len([c for c in kept[index] if c in image]) < len(image):
                    made = remembered(parts["context.0"], [c in kept[index] for c in image], x[going])
                x, cols = x[stay], cols[stay]
            first = normal(x, layer.input_layernorm)
            out, _ = attention(layer, first, cols - pads)
            if repair and parts is not None and made is not None and f"repair.{index}" in parts:
                out[-1] += change(parts[f"repair.{index}"], out[-1], first[-1], made)
            x = x + out
            second, own = normal(x, layer.post_attention_layernorm), layer.mlp
            gate, up, down = (part.weight.double() for part in (own.gate_proj, own.up_proj, own.down_proj))
            x = x + (torch.nn.functional.silu(second @ gate.T) * (second @ up.T)) @ down.T
        return normal(x[-1], self.tower.norm) @ model().lm_head.weight.double().T, kept

    def cut(
        self, index: int, row: int, x: Tensor, cols: Tensor, image: list[int], keeps: Any, parts: dict[str, Any] | None
    ) -> list[int]:
        """The places that stay before layer ``index``."""
        places = [place for place, col in enumerate(cols.tolist()) if col in image]
        asking = [place for place, col in enumerate(cols.tolist()) if col > image[-1]]
        paid = self.ahead(index, x, cols, row)[:, asking].mean((0, 1))
        received = [float(paid[place]) for place in places]
        logits: Any = [torch.tensor(one).log() for one in received]
        logits = [one - sum(logits) / len(logits) + 2.0 for one in logits]
        if parts is not None:
            logits = cross(parts[f"prune.{index}"], x[places], x[asking].mean(0), received)
        order = sorted(range(len(places)), key=lambda n: -float(logits[n]))
        count = int(len(image) * keeps[index - 1]) if keeps else max(1, sum(float(one) > 0 for one in logits))
        best = {places[n] for n in order[:count]}
        return [place for place in range(len(cols)) if place in best or place not in places]


@pytest.mark.parametrize("keeps", [None, [0.75, 0.5, 0.25]])
@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("learnt", [True, False])
def test_a_padded_batch_against_loops(keeps: list[float] | None, repair: bool, learnt: bool, weights: str) -> None:
    """Columns kept at every stage and the logits of the first answer, repaired or not."""
    loops, params = Repaired([1, 1]), {"weights": weights} if learnt else {}
    out, run = generated("rcp", prompts([1, 1]), keep=keeps and tuple(keeps), repair=repair, layer=LAYERS, **params)
    events = {event.layer: event for event in run.trace.events if event.layer is not None}
    for row in range(2):
        logits, kept = loops.play(row, keeps, repair, PARTS if learnt else None)
        assert {layer: columns(event, row) for layer, event in events.items()} == kept
        assert torch.allclose(out.logits[0][row].double(), logits, atol=2e-4)


def test_a_repair_reaches_every_decoded_token(weights: str) -> None:
    """And the tokens of a second turn; a row that lost nothing is left alone."""
    inputs = prompts([1, 1])
    with_it, without = (generated("rcp", inputs, weights=weights, keep=0.3, repair=r)[0].logits for r in (True, False))
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(with_it, without, strict=True))
    plain, whole = (generated("rcp", inputs, weights=weights, keep=1.0, repair=r)[0].logits for r in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))


def test_a_repair_follows_the_beams(weights: str) -> None:
    inputs = prompts([1, 1])
    with tithe.on(model(), "rcp", weights=weights, keep=0.3), torch.no_grad():
        both = model().generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0)
        alone = model().generate(
            **{n: v[:1] for n, v in inputs.items()}, max_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0
        )
    assert torch.equal(both[:1], alone)


def test_trained_pruners_find_what_attention_does_not() -> None:
    """Two hops on the zoo's LLaVA: its own attention drops what stands beside, before layer 1 already."""
    ours = tithe.method("rcp", keep=(0.25, 0.25, 0.25), weights="vlm")
    plain = tithe.method("rcp", keep=(0.25, 0.25, 0.25))
    assert answered(ours) > answered(plain) + 0.2
    assert answered(ours) > answered(by_chance(plain)) + 0.1


def test_what_does_not_fit_is_refused(weights: str) -> None:
    with pytest.raises(Refused, match=r"training/rcp\.py"):
        tithe.on(model(), "rcp", weights="vlm")
    with pytest.raises(BadInput, match="at least one layer"):
        tithe.method("rcp", layer=())
    with pytest.raises(BadInput, match="one budget for each"):
        tithe.method("rcp", keep=(0.5, 0.2))
    with pytest.raises(Refused, match="earliest"):
        tithe.on(model(), "rcp", layer=0)


def test_contract(weights: str) -> None:
    assert model()
    contract("rcp")
    contract("rcp", weights=weights)


def test_contract_on_the_trained_model() -> None:
    vlm, _, _, inputs = asked()
    assert check_method("rcp", vlm, {name: value[:2] for name, value in inputs.items()}, weights="vlm")
