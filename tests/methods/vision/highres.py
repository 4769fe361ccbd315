"""What methods for high resolution are tested on: recorded CLS rows of a thumbnail and its mosaic, and tiny hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from methods.vision.contract import from_rows
from tiny_vision import VLMS, prompt
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.seams.image import TowerLayer
from tithe.types import IMAGE, Method, Part, Selection, Tokens, checked, comparable, shares

Cell = tuple[int, int, int] | None  # part, row, column of a token; None for a newline


def places(
    side: int, mosaic: tuple[int, int], size: tuple[int, int] | None = None, newlines: bool = True
) -> list[Cell]:
    """The tokens of a thumbnail and of a mosaic of (columns, rows) crops, cut to a picture of (width, height)."""
    cols, rows = mosaic
    width, height = cols * side, rows * side
    top = left = 0
    if size is not None and size[0] * height > size[1] * width:
        top = (height - int(size[1] * width / size[0])) // 2
    elif size is not None:
        left = (width - int(size[0] * height / size[1])) // 2
    found: list[Cell] = [(0, y, x) for y in range(side) for x in range(side)]
    for y in range(top, height - top):
        found += [(1 + y // side * cols + x // side, y % side, x % side) for x in range(left, width - left)]
        found += [None] if newlines else []
    return found


def seen(
    layers: Sequence[LayerEvidence], cells: list[Cell], side: int, crops: int, columns: int = 1
) -> tuple[Evidence, Tokens]:
    """What a tower of ``layers`` (thumbnail first, CLS in slot 0) shows of one picture, and its tokens."""
    none = (float("nan"),) * 3
    origin = torch.tensor([cell if cell is not None else none for cell in cells], dtype=torch.float32)

    def to_tokens(patches: Tensor) -> Tensor:
        low = patches.min() - 1
        return torch.stack([low if c is None else patches[c[0], 1 + c[1] * side + c[2]] for c in cells])

    of = [torch.tensor([n for n, c in enumerate(cells) if c is not None and c[0] == part]) for part in range(crops)]
    parts = tuple(
        Part((side, side), own, n, n == 0 and crops > 1, 0, cell=divmod(n - 1, columns) if n else None)
        for n, own in enumerate(of)
    )
    tower = {("image", n): TowerLayer([one]) for n, one in enumerate(layers)}
    evidence = Evidence(tower, None, {"image": len(layers)}, to_tokens=to_tokens, parts=lambda: parts)  # type: ignore[arg-type]
    cols = torch.arange(len(cells), dtype=torch.int32)[None, None]
    live = torch.ones_like(cols, dtype=torch.bool)
    return evidence, Tokens(cols, live, torch.tensor([len(cells)]), torch.full_like(cols, IMAGE), origin=origin)


def recorded(rows: Sequence[Tensor], cells: list[Cell], side: int, columns: int = 1) -> tuple[Evidence, Tokens]:
    """The same from CLS rows of probabilities ``[crops, H, 1 + side^2]``, one for each layer."""
    return seen([from_rows(one) for one in rows], cells, side, len(rows[0]), columns)


def decide(method: Method, evidence: Evidence, given: Tokens) -> Selection:
    """What the only step of ``method`` selects, as the flow has it decide."""
    (step,) = method.steps
    name, score = method.card.slug, None
    if step.score is not None:
        score = checked(step.score(evidence, given), given, name, "here")
    if step.allot is not None:
        given = replace(given, allot=shares(step.allot(evidence, given), given, name, "here"))
    assert step.select is not None
    if step.compare is None:
        return step.select(score, given)  # type: ignore[call-arg, arg-type]
    return step.select(score, given, comparable(step.compare(evidence, given), given, name, "here"))  # type: ignore[call-arg]


def chosen(selection: Selection, cells: list[Cell]) -> set[Cell]:
    """The tokens kept, newlines left out."""
    return {cells[n] for n in selection.keep[0, 0].nonzero()[:, 0].tolist()} - {None}


@cache
def host(name: str) -> Any:
    """A tiny random model of a family."""
    return VLMS[name].model()


def generated(name: str, slug: str, rows: Sequence[int], **params: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """Generate with so many images in each row under ``slug``; return the output, the run and the inputs."""
    model = host(name)
    inputs = prompt(name, model, list(rows))
    common = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with tithe.on(model, slug, level="scores", **params) as run, torch.no_grad():
        out = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, use_cache=True, **common)
    return out, run, inputs


MOSAICS = {(20, 32): (2, 2), (32, 12): (1, 2), (30, 28): (2, 2), (10, 10): (2, 1)}  # (height, width): (columns, rows)


def pictured(inputs: dict[str, Tensor]) -> list[tuple[Evidence, Tokens]]:
    """What the tower of the tiny LLaVA-NeXT shows of each picture, by transformers' eager attention and our layout."""
    tower = host("llava_next").model.vision_tower
    sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
    own, found = tower.config._attn_implementation, []
    tower.set_attn_implementation("eager")
    try:
        for pixels, size in zip(inputs["pixel_values"], sizes, strict=True):
            columns, rows = MOSAICS[size]
            with torch.no_grad():
                seen_by = tower(pixels[: 1 + columns * rows], output_attentions=True).attentions
            cells = places(4, (columns, rows), (size[1], size[0]))
            found.append(recorded([layer[:, :, 0] for layer in seen_by], cells, 4, columns))
    finally:
        tower.set_attn_implementation(own)
    return found


def contract(slug: str, **params: Any) -> None:
    """Run the shared contract on pictures with crops."""
    check_method(slug, host("llava_next"), prompt("llava_next", host("llava_next"), [1, 1]), **params)
