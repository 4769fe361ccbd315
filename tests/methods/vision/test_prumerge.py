from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from methods.vision import highres
from methods.vision.contract import contract, layer, vector
from methods.vision.highres import Cell, decide, generated, host, places, seen
from tiny_vision import IMAGE, prompt
from torch import Tensor

import tithe
from tithe import method
from tithe.errors import BadInput

VECTOR, META = vector("prumerge")
FIXED = META["parameters"]["fixed_ratio"]
SIDE = 24
CELLS: list[Cell] = [(0, n // SIDE, n % SIDE) for n in range(SIDE * SIDE)]
MODES: dict[str, dict[str, Any]] = {
    "plain": {"spatial": False},
    "plus": {"spatial": True},
    "fixed": {"spatial": False, "floor": FIXED, "ceiling": FIXED},
}


def heads(rows: Tensor) -> Tensor:
    """``[crops, n, 16]`` as two heads."""
    return rows.unflatten(-1, (2, 8)).transpose(1, 2)


def ordered(rows: Tensor) -> Tensor:
    """Rows in the order of their first channel, since the authors' tokens stand by attention."""
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", range(META["parameters"]["cases"]))
def test_same_tokens_as_the_authors(case: int, mode: str) -> None:
    tower = layer(heads(VECTOR[f"q_{case}"]), heads(VECTOR[f"k_{case}"]))
    evidence, tokens = seen([tower], CELLS, SIDE, 1)
    selection = decide(method("prumerge", **MODES[mode]), evidence, tokens)
    theirs = VECTOR[f"{mode}_{case}"]
    kept = selection.keep[0, 0]
    assert int(kept.sum()) == len(theirs)
    assert selection.mix is not None
    made = selection.mix[0][kept] @ VECTOR[f"features_{case}"][0]
    assert torch.allclose(ordered(made), ordered(theirs), atol=1e-4)


@pytest.mark.parametrize("spatial", [True, False])
def test_every_crop_against_loops(spatial: bool) -> None:
    side, near, cells = 10, 7, places(10, (2, 1), (60, 20))
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 2, side * side + 1, 4, generator=draw) * 1.5 for _ in range(2))
    evidence, tokens = seen([layer(q, k)], cells, side, 3)
    selection = decide(method("prumerge", spatial=spatial, neighbours=near, floor=2), evidence, tokens)
    keys, queries = k.double().transpose(1, 2).flatten(2), q.double().transpose(1, 2).flatten(2)
    keep = [False] * len(cells)
    mix = np.zeros((len(cells), len(cells)))
    for crop in range(3):
        own = [n for n, cell in enumerate(cells) if cell is not None and cell[0] == crop]
        row = ((keys[crop] @ queries[crop, 0]) / 8**0.5).softmax(-1)
        slots = [1 + cells[n][1] * side + cells[n][2] for n in own]  # type: ignore[index]
        mass = [float(row[slot]) for slot in slots]
        low, high = np.percentile(mass, 25), np.percentile(mass, 75)
        count = max(sum(one > high + 1.5 * (high - low) for one in mass), 2)
        stay = sorted(range(len(own)), key=lambda n: -mass[n])[:count]
        if spatial:
            stay += [n for n in range(0, len(own) - 1, max(int(int(len(own) / count) / 3), 1)) if n not in stay]
        for n in stay:
            cosine = torch.nn.functional.cosine_similarity(keys[crop, slots], keys[crop, slots[n]][None]).tolist()
            others = sorted((m for m in range(len(own)) if m != n), key=lambda m: -cosine[m])[:near]
            keep[own[n]], mix[own[n], own[n]] = True, 1.0
            for m in others:
                mix[own[n], own[m]] = mass[m]
        rest = [n for n in range(len(own)) if n not in stay]
        keep[own[rest[-1]]] = True
        for n in rest:
            mix[own[rest[-1]], own[n]] = mass[n]
    assert selection.keep[0, 0].tolist() == keep
    kept = selection.keep[0, 0]
    assert selection.mix is not None
    assert torch.allclose(selection.mix[0][kept].double(), torch.from_numpy(mix)[kept], atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
def test_effect_on_tiny_hosts_with_several_pictures(name: str) -> None:
    _, plus, _ = generated(name, "prumerge", [1, 2])
    _, plain, _ = generated(name, "prumerge", [1, 2], spatial=False, floor=0.25, ceiling=0.25)
    assert len(plus.trace.events) == len(plain.trace.events) == 3
    for event in plain.trace.events:
        if name != "llava_next":
            assert sum(event.kept) == 16 // 4 + 1
        assert sum(event.kept) < sum(event.seen)
    assert all(sum(event.kept) < sum(event.seen) for event in plus.trace.events)


def test_tokens_are_mixed_before_the_connector() -> None:
    model = host("llava")
    inputs = prompt("llava", model, [1])
    tower, seen_by = model.model.vision_tower, {}
    own = tower.vision_model.encoder.layers[-1].self_attn if hasattr(tower, "vision_model") else None
    own = own or tower.encoder.layers[-1].self_attn
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: seen_by.update({name: out}))
        for name, part in (("q", own.q_proj), ("k", own.k_proj))
    ]
    with torch.no_grad():
        hidden = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    for hook in hooks:
        hook.remove()
    cells: list[Cell] = [(0, n // 4, n % 4) for n in range(16)]
    evidence, tokens = seen([layer(heads(seen_by["q"]), heads(seen_by["k"]))], cells, 4, 1)
    selection = decide(method("prumerge", neighbours=5), evidence, tokens)
    assert selection.mix is not None
    kept = selection.keep[0, 0]
    with torch.no_grad():
        made = model.model.multi_modal_projector(selection.mix[0][kept] @ hidden)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        stay = torch.ones_like(inputs["input_ids"][0], dtype=torch.bool)
        stay[inputs["input_ids"][0] == IMAGE] = kept
        embeds[0, stay & (inputs["input_ids"][0] == IMAGE)] = made
        place = torch.arange(embeds.shape[1])[None, stay]
        mask = torch.ones_like(place)
        wanted = model(inputs_embeds=embeds[:, stay], position_ids=place, attention_mask=mask).logits[:, -1]
        with tithe.on(model, "prumerge", neighbours=5):
            found = model(**inputs).logits[:, -1]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_bounds_are_checked() -> None:
    with pytest.raises(BadInput, match="ceiling"):
        method("prumerge", ceiling=1.5)
    with pytest.raises(BadInput, match="neighbours"):
        method("prumerge", neighbours=0)


def test_contract() -> None:
    contract("prumerge")


def test_contract_on_pictures_with_crops() -> None:
    highres.contract("prumerge")
