from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods.vision.contract import contract, generated, prompts, right, vector
from tiny_vision import VLMS, prompt
from torch import Tensor
from torch.nn.functional import layer_norm, silu

import tithe
from tithe import method
from tithe.actions.compress import Compressor, gathered
from tithe.errors import BadInput, Refused
from tithe.scores.boxes import boxes, looking
from tithe.seams.evidence import Evidence
from tithe.selections.beneath import Beneath
from tithe.types import Part, Selection, Tokens
from tithe.zoo.pruners import trained

VECTOR, META = vector("docowl2")
SHORT = {"attention.query": "query", "attention.key": "key", "attention.value": "value", "output.out_proj": "out"}
SHORT |= {f"output.{name}": name for name in ("norm2",)} | {
    f"output.mlp.{name}": name for name in ("w1", "w2", "w3", "ffn_ln")
}


def theirs() -> dict[str, Tensor]:
    """Recorded weights by our names."""
    found = {"heads": torch.tensor(float(META["parameters"]["heads"]))}
    for name, value in VECTOR.items():
        if name.startswith("w.compressor_crossatt.layers."):
            layer, rest = name.removeprefix("w.compressor_crossatt.layers.").split(".", 1)
            stem, kind = rest.rsplit(".", 1)
            found[f"{layer}.{SHORT.get(stem, stem)}.{kind}"] = value
        elif name.startswith("w.compressor_fc."):
            found[name.removeprefix("w.compressor_")] = value
    return found


def page(cells: list[tuple[int, int]], grid: tuple[int, int], cut: tuple[int, int] = (0, 0)) -> tuple[Evidence, Tokens]:
    """A thumbnail and crops at ``cells``, of whose mosaic ``cut`` rows and columns were cut off at either side."""
    each = grid[0] * grid[1]
    raster = torch.tensor([[row, col] for row in range(grid[0]) for col in range(grid[1])], dtype=torch.float32)
    down, right_ = (max(cell[side] for cell in cells) + 1 for side in (0, 1))
    origin = [torch.cat([torch.zeros(each, 1), raster], 1)]
    parts, at = [Part(grid, torch.arange(each), 0, True, 0)], each
    for number, (row, col) in enumerate(cells, 1):
        mosaic = raster + torch.tensor([row * grid[0], col * grid[1]])
        limit = torch.tensor([down * grid[0], right_ * grid[1]])
        stay = ((mosaic >= torch.tensor(cut)) & (mosaic < limit - torch.tensor(cut))).all(1)
        origin.append(torch.cat([torch.full((int(stay.sum()), 1), float(number)), raster[stay]], 1))
        parts.append(Part(grid, torch.arange(at, at + int(stay.sum())), number, False, 0, cell=(row, col)))
        at += int(stay.sum())
    cols = torch.arange(at, dtype=torch.int32)[None, None]
    tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([at]), origin=torch.cat(origin))
    return Evidence({}, None, {}, parts=lambda: tuple(parts)), tokens


def selected(evidence: Evidence, tokens: Tokens, block: int = 2) -> Selection:
    box = boxes(evidence, tokens, block)
    return Beneath()(looking(box, tokens, evidence.parts), tokens, box)


@pytest.mark.parametrize(("first", "cells"), [(0, [(0, 0), (0, 1), (1, 0), (1, 1)]), (5, [(0, 0), (0, 1), (0, 2)])])
def test_same_numbers_as_the_authors(first: int, cells: list[tuple[int, int]]) -> None:
    """Regions through parts and cells, then the network; theirs puts an end token behind each picture."""
    crops = VECTOR["features"][first : first + 1 + len(cells), :-1]
    assert VECTOR["positions"][first + 1 : first + 1 + len(cells)].tolist() == [list(cell) for cell in cells]
    selection = selected(*page(cells, (3, 3)))
    assert selection.mix is not None
    who, region, inside = gathered(selection.mix[0].coalesce().indices())
    assert who.tolist() == selection.keep[0, 0].nonzero()[:, 0].tolist() == list(range(9))
    rows = crops.flatten(0, 1)
    made = Compressor(theirs())(rows[who], rows[region], inside)
    image = 0 if first == 0 else 1
    assert torch.allclose(made, VECTOR["output"][image, :-1], atol=1e-4)


def by_loops(weights: dict[str, Tensor], query: Tensor, region: Tensor) -> Tensor:
    """One query ``[d]`` and its region ``[r, d]``, in float64, head by head."""
    w = {name: value.double() for name, value in weights.items()}
    heads, width = int(w["heads"]), len(query)
    size = width // heads

    def lin(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    x, y = query.double(), region.double()
    for layer in range(sum(name.endswith("normk.bias") for name in w)):
        x, y = norm(f"{layer}.norm1", x), region.double()
        y = norm(f"{layer}.normk", y)
        q, k, v = lin(f"{layer}.query", x), lin(f"{layer}.key", y), lin(f"{layer}.value", y)
        read = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = [float(q[part] @ k[place, part]) / math.sqrt(size) for place in range(len(y))]
            odds = [math.exp(one - max(logits)) for one in logits]
            read.append(sum(odd / sum(odds) * v[place, part] for place, odd in enumerate(odds)))
        x = x + lin(f"{layer}.out", torch.cat([torch.as_tensor(part) for part in read]))
        inner = norm(f"{layer}.norm2", x)
        inner = silu(lin(f"{layer}.w1", inner)) * lin(f"{layer}.w3", inner)
        x = x + lin(f"{layer}.w2", norm(f"{layer}.ffn_ln", inner, 1e-6))
    return lin("fc", x)


def test_naive_reference_with_ragged_regions() -> None:
    """Padding cut off and grids that do not divide: regions are the windows of adaptive pooling."""
    evidence, tokens = page([(0, 0), (0, 1), (1, 0), (1, 1)], (3, 3), (1, 0))
    selection = selected(evidence, tokens)
    assert selection.mix is not None and tokens.origin is not None
    mosaic = {}
    for part in evidence.parts[1:]:
        assert part.cell is not None
        for place in part.places.tolist():
            row, col = (part.cell[axis] * 3 + int(tokens.origin[place, 1 + axis]) for axis in (0, 1))
            mosaic[row - 1, col] = place
    assert len(mosaic) == 24
    rows = torch.randn(len(tokens.origin), 8, generator=torch.Generator().manual_seed(0))
    who, region, inside = gathered(selection.mix[0].coalesce().indices())
    made = Compressor(theirs())(rows[who], rows[region], inside)
    for place in range(9):
        top, left = divmod(place, 3)
        wanted = [
            mosaic[y, x]
            for y in range(4 * top // 3, math.ceil(4 * (top + 1) / 3))
            for x in range(6 * left // 3, math.ceil(6 * (left + 1) / 3))
        ]
        assert sorted(region[place][inside[place]].tolist()) == sorted(wanted)
        assert torch.allclose(made[place].double(), by_loops(theirs(), rows[place], rows[wanted]), atol=1e-4)


def test_crops_of_unknown_place_are_refused() -> None:
    evidence, tokens = page([(0, 0), (0, 1)], (2, 2))
    lost = tuple(Part(p.grid, p.places, p.row, p.whole, p.image) for p in evidence.parts)
    with pytest.raises(Refused, match="where they lie"):
        boxes(Evidence({}, None, {}, parts=lambda: lost), tokens, 2)


def test_as_many_tokens_as_the_thumbnail() -> None:
    family = VLMS["llava_next"]
    model = family.model()
    inputs = prompt("llava_next", model, [1, 2])
    with tithe.on(model, "docowl2") as run, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert [event.kept for event in run.trace.events] == [(16,)] * 3
    assert all(sum(event.seen) > 40 for event in run.trace.events)


def test_a_single_view_asks_its_own_blocks() -> None:
    """Without weights: the likeness-weighted mean of each block, in every picture's features."""
    _, run = generated("docowl2", prompts([1, 1]))
    assert [event.kept for event in run.trace.events] == [(4,), (4,)]
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
    made = Compressor()(rows[3:], rows[None], torch.tensor([[True, True, False, True]]))
    odds = [math.exp(float(rows[3] @ rows[place]) / math.sqrt(6)) for place in (0, 1, 3)]
    wanted = sum(odd / sum(odds) * rows[place] for odd, place in zip(odds, (0, 1, 3), strict=True))
    assert torch.allclose(made[0], torch.as_tensor(wanted))


def test_contract() -> None:
    contract("docowl2")
    with pytest.raises(BadInput, match="block"):
        method("docowl2", block=0)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(Refused, match="128"):
        tithe.on(VLMS["llava"].model(), "docowl2", weights="vlm")
    with pytest.raises(BadInput, match="not known"):
        method("docowl2", weights="nowhere")


def test_training_pays_on_the_zoo() -> None:
    """9 of 144 tokens: the trained compressor answers more than averages of blocks, random tokens, and untrained."""
    parts: Any = trained("docowl2", "vlm").of("compressor")
    assert Compressor(parts).layers == 2
    ours, bare = right("docowl2", weights="vlm", block=4), right("docowl2", block=4)
    plain, chance = right("downsample", keep=9), right("random-patches", keep=9)
    assert ours > max(plain, chance, bare) + 0.2, f"{ours:.3f}, {plain:.3f}, random {chance:.3f}, untrained {bare:.3f}"
