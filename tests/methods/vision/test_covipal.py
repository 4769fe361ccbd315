from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.vision.contract import asked, contract, generated, model, prompts, right
from methods.vision.inside import Loops, answered, columns
from methods.vision.learnt import contextual, drawn, module, saved
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.errors import BadInput, Refused
from tithe.scores.pruners import Contextual

WIDTH = 32


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Random modules for the tiny LLaVA, before it and before its layer 2."""
    parts = {f"prune.{layer}": drawn(module(WIDTH), layer) for layer in (0, 2)}
    return saved(tmp_path / "some.safetensors", "covipal", WIDTH, parts)


def test_the_module_in_loops() -> None:
    """Rows of a padded batch, one of them shorter."""
    w, draw = drawn(module(WIDTH), 3), torch.Generator().manual_seed(0)
    states = torch.randn(2, 9, WIDTH, generator=draw)
    image = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0]]).bool()
    valid = torch.ones_like(image)
    valid[1, :2] = False
    got = Contextual(w)(states, image, valid)
    for row in range(2):
        wanted = contextual(w, states[row][valid[row]], image[row][valid[row]].tolist())
        assert torch.allclose(got[row][valid[row]].double(), wanted, atol=1e-4)


def test_modules_before_the_model_and_before_a_layer(weights: str) -> None:
    """The tokens that loops choose, from embeddings before the model and from the states in front of layer 2."""
    loops = Loops([1, 2])
    out, run = generated("covipal", prompts([1, 2]), weights=weights, layer=(0, 2), keep=(0.5, 0.25))
    first, second = (next(e for e in run.trace.events if e.layer == at) for at in (None, 2))
    encoder = [e for e in run.trace.events if e.layer is None]
    assert len(encoder) == 2 and first is encoder[0]
    parts = {layer: drawn(module(WIDTH), layer) for layer in (0, 2)}
    for row in range(2):
        image = set(loops.image[row].nonzero()[:, 0].tolist())

        def before(
            index: int, x: Tensor, cols: Tensor, row: int = row, image: set[int] = image
        ) -> tuple[Tensor, Tensor]:
            if index not in parts:
                return x, cols
            kinds = [col in image for col in cols.tolist()]
            scores = contextual(parts[index], x.float(), kinds)
            places = [place for place, kind in enumerate(kinds) if kind]
            share = 0.5 if index == 0 else 0.25
            best = sorted(places, key=lambda place: -float(scores[place]))[: int(len(image) * share)]
            stay = [place for place in range(len(cols)) if place in best or place not in places]
            if index:
                assert columns(second, row) == cols[stay].tolist()
            else:
                assert columns(encoder[row]) == [places.index(place) for place in stay if place in places]
            return x[stay], cols[stay]

        assert torch.allclose(out.logits[0][row].double(), loops.row(row, before), atol=1e-4)


def test_without_weights_the_labels_decide() -> None:
    """Attention of layer 2 from as many last tokens as there are image tokens, by transformers' own eager attention."""
    inputs, tiny = prompts([1, 1]), model()
    own = tiny.config.text_config._attn_implementation
    tiny.set_attn_implementation("eager")
    with torch.no_grad():
        probs = tiny(**inputs, output_attentions=True).attentions[2].double()
    tiny.set_attn_implementation(own)
    _, run = generated("covipal", inputs, keep=0.25)
    (event,) = run.trace.events
    for row in range(2):
        image = (inputs["input_ids"][row] == tiny.config.image_token_id).nonzero()[:, 0].tolist()
        label = {col: float(probs[row, :, -len(image) :, col].sum()) for col in image}
        best = sorted(image, key=lambda col: -label[col])[: len(image) // 4]
        assert [col for col in columns(event, row) if col in image] == sorted(best)


def test_trained_modules_beat_random_tokens() -> None:
    """Fifteen of 144 tokens of the zoo's LLaVA, questions of one and of two hops."""
    assert right("covipal", keep=0.11, weights="vlm") > right("random-patches", keep=0.11) + 0.2
    ours, chance = (
        tithe.method(slug, keep=0.11, **extra)
        for slug, extra in (("covipal", {"weights": "vlm"}), ("random-patches", {}))
    )
    assert answered(ours) > answered(chance) + 0.15


def test_what_does_not_fit_is_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"training/covipal\.py"):
        tithe.on(model(), "covipal", weights="vlm")
    with pytest.raises(BadInput, match="Possible: vlm"):
        tithe.method("covipal", weights="llm")
    with pytest.raises(BadInput, match="without weights"):
        tithe.method("covipal", layer=(0, 2))
    with pytest.raises(BadInput, match="one budget for each"):
        tithe.method("covipal", weights=weights, keep=(0.5, 0.2))
    other = saved(tmp_path / "other.safetensors", "rcp", WIDTH, {"prune.0": drawn(module(WIDTH), 0)})
    with pytest.raises(BadInput, match="holds nothing that covipal"):
        tithe.method("covipal", weights=other)
    with pytest.raises(Refused, match="trained were 0, 2"):
        generated("covipal", prompts(), weights=weights, layer=1)


def test_contract(weights: str) -> None:
    assert model()
    contract("covipal")
    contract("covipal", weights=weights, layer=(0, 2))


def test_contract_on_the_trained_model() -> None:
    vlm, _, _, inputs = asked()
    assert check_method("covipal", vlm, {name: value[:2] for name, value in inputs.items()}, weights="vlm")
