"""What methods did to one input, token by token, as the page shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tithe import hosts
from tithe.bench.ask import Attach, Where, ask, untouched
from tithe.bench.boards import Board, board, encoded
from tithe.bench.fates import Placed, pictured, placed
from tithe.bench.marking import begins
from tithe.bench.prompt import Inputs, Prompt, joined, pieces, tokenizer_of
from tithe.bench.specs import Spec
from tithe.bench.tasks.base import decoded
from tithe.bench.tasks.vision import labelled, patches_and_cls
from tithe.budget import Keep
from tithe.errors import BadInput, TitheError
from tithe.flow import Run, on
from tithe.page import ImageCase, LayerView, Picture, TextCase, View
from tithe.trace import Event
from tithe.types import Method
from tithe.zoo import Loaded

Places = Callable[[Event], Tensor | None]
Told = tuple[tuple[LayerView, ...], bool]
Tell = Callable[[Sequence[Event]], Told]


@dataclass(frozen=True)
class Look:
    """Which methods to look at: each spec at each budget. ``before`` is told of each one before it runs; ``refuse``
    takes what cannot be served, which is raised where there is none."""

    specs: Sequence[tuple[Spec, Keep | None]]
    params: dict[str, Any] = field(default_factory=dict)
    before: Callable[[str], None] = lambda label: None
    refuse: Callable[[Spec, Keep | None, TitheError], None] | None = None

    def methods(self) -> Iterator[tuple[Spec, Keep | None, tuple[Method, ...]]]:
        """Yield what is to run."""
        for spec, keep in self.specs:
            self.before(spec.label if keep is None else f"{spec.label} · {keep}")
            yield spec, keep, spec.methods(keep, self.params)


def text_case(loaded: Loaded, name: str, prompt: Prompt, where: Where, look: Look) -> TextCase:
    """Put the first question of ``prompt`` to the model, untouched and under all that ``look`` says."""
    one = prompt.asks[0]
    shown = joined(prompt.inputs, one.ids) if where == "inside" else prompt.inputs
    ids = shown["input_ids"][0].tolist()
    columns = torch.arange(len(ids))
    answer = partial(written, loaded, prompt, where)

    def told(events: Sequence[Event]) -> Told:
        return layer_views(events, len(ids), lambda event: _text_place(event, columns)), False

    plain, views = _views(loaded.model, answer, one.answer, told, look)
    return TextCase(name, pieces(tokenizer_of(loaded), ids), one.text, one.answer or "", plain, views)


def image_case(
    loaded: Loaded,
    name: str,
    pictures: Sequence[Image.Image],
    prompt: Prompt,
    where: Where,
    look: Look,
    expected: str = "",
) -> ImageCase:
    """Show pictures, or the frames of a clip, to the model, untouched and under all that ``look`` says.

    Raises:
        BadInput: the model's image tokens do not form a raster over the picture.
    """
    model, question = loaded.model, ""
    if loaded.kind == "vit":
        host = hosts.find(model)
        assert host.vision is not None
        seen, first = _tower_board(loaded, pictures[0], prompt.inputs, host.vision.cls), int(host.vision.cls)
        answer = partial(classified, model, prompt.inputs)
    else:
        one = prompt.asks[0]
        seen, first, question = board(loaded, pictures, prompt.inputs), 0, one.text
        expected = expected or one.answer or ""
        answer = partial(written, loaded, prompt, where)
    n = seen.patches

    def told(events: Sequence[Event]) -> Told:
        found = _inside(events, n, first) if loaded.kind == "vit" else placed(events, seen.units, seen.columns)
        return pictured(list(found), n, _spread)

    plain, views = _views(model, answer, expected or None, told, look)
    return ImageCase(name, seen.pictures, question, expected, plain, views, seen.aside)


def layer_views(events: Sequence[Event], n: int, place: Places) -> tuple[LayerView, ...]:
    """Return one view a layer from the events of one run: a prefill's where there are any, else the last decode step's.

    Where several steps acted at a layer, a token counts as kept by the heads of that which kept fewest.
    """
    shown: dict[int | None, LayerView] = {}
    usable = [(event, where) for event in events if (where := place(event)) is not None]
    reading = [pair for pair in usable if pair[0].phase == "prefill"]
    for event, where in reading or usable:
        kept, scores = _spread(event, where, n)
        before = shown.get(event.layer)
        if before is not None:
            kept = tuple(min(pair) for pair in zip(kept, before.kept, strict=True))
        shown[event.layer] = LayerView(event.layer, scores or (before.scores if before else None), kept)
    ordered = sorted(shown.values(), key=lambda view: -1 if view.layer is None else view.layer)
    return tuple(ordered) or (LayerView(None, None, (1.0,) * n),)


def _views(
    model: Any, answer: Callable[[Attach], str], expected: str | None, told: Tell, look: Look
) -> tuple[str, tuple[View, ...]]:
    plain, views = answer(untouched), []
    for spec, keep, methods in look.methods():
        runs: list[Run] = []

        def attach(methods: tuple[Method, ...] = methods, runs: list[Run] = runs) -> Run:
            runs.append(on(model, methods, level="scores"))
            return runs[-1]

        try:
            said = answer(attach)
        except TitheError as error:
            if look.refuse is None:
                raise
            look.refuse(spec, keep, error)
            continue
        right = None if expected is None else begins(said, expected) == 1
        events = runs[-1].trace.events
        for name, (layers, staged) in list(_outputs(methods, events, told)) or [("", told(events))]:
            views.append(View(" · ".join(filter(None, (spec.label, name))), keep, said, right, layers, staged))
    return plain, tuple(views)


def _outputs(methods: tuple[Method, ...], events: Sequence[Event], told: Tell) -> Iterator[tuple[str, Told]]:
    """Yield a view for each named result of an explanation."""
    names = {(method.card.slug, at): step.outputs for method in methods for at, step in enumerate(method.steps)}
    for event in events:
        for head, name in enumerate(names.get((event.method, event.step), ())):
            if event.scores is not None:
                yield name, told([replace(event, scores=event.scores[:, head : head + 1])])


def written(loaded: Loaded, prompt: Prompt, where: Where, attach: Attach) -> str:
    """Return the answer to the first question of ``prompt``."""
    (reply,) = ask(loaded.model, Prompt(prompt.inputs, prompt.asks[:1]), attach, where)
    return decoded(loaded, reply.ids).strip()


@torch.no_grad()
def classified(model: Any, inputs: Inputs, attach: Attach) -> str:
    """Return what a classifier says of a picture, nothing for an encoder without labels."""
    with attach():
        output = model(**inputs)
    return labelled(model, output.logits) if hasattr(output, "logits") else ""


def _spread(event: Event, where: Tensor, n: int) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Return, for each of ``n`` tokens, the share of heads that kept it and its mean score, from an event's first row.

    ``where [H or 1, m]``: which token each slot holds, outside 0..n-1 for none that is shown. What was no longer there
    to be chosen is not kept; it has no score.
    """
    keep = event.keep[0] if event.keep is not None else torch.ones_like(where, dtype=torch.bool)
    heads = keep.shape[0]
    slots = where.expand(heads, -1)
    held = (slots >= 0) & (slots < n)
    kept = torch.zeros(n).index_add_(0, slots[keep & held], torch.ones(int((keep & held).sum())))
    shares = tuple((kept / heads).tolist())
    if event.scores is None:
        return shares, None
    score = event.scores[0].float()
    at = where.expand(score.shape[0], -1)
    scored = (at >= 0) & (at < n)
    total = torch.zeros(n).index_add_(0, at[scored], score[scored])
    count = torch.zeros(n).index_add_(0, at[scored], torch.ones(int(scored.sum())))
    return shares, tuple((total / count).tolist())


def _text_place(event: Event, columns: Tensor) -> Tensor | None:
    """Return which shown token each slot of a text event holds, by the table ``columns [T]``."""
    if event.cols is None or event.tower != "text" or event.point == "encoder":
        return None
    cols = event.cols[0].long()
    return torch.where(cols < len(columns), columns[cols.clamp(max=len(columns) - 1)], -1)


def _inside(events: Sequence[Event], n: int, first: int) -> Iterator[Placed]:
    """Yield the events of a classifier's blocks, with the patch of each slot: that of its column behind the CLS's."""
    for event in events:
        if event.tower == "image" and event.cols is not None:
            patch = event.cols[0].long() - first
            yield event, torch.where(patch < n, patch, -1)


def _tower_board(loaded: Loaded, picture: Image.Image, inputs: Inputs, cls: bool) -> Board:
    patches = patches_and_cls(loaded.model, inputs) - cls
    side = math.isqrt(patches)
    if side * side != patches:
        raise BadInput(f"image: the {patches} patches of this model form no square, so none can be drawn.")
    data, size = encoded(_seen(picture, loaded))
    return Board((Picture(data, size, (side, side)),), torch.arange(patches), torch.empty(0))


def _seen(picture: Image.Image, loaded: Loaded) -> Image.Image:
    """Return the part of a picture that the model's processor does not crop away."""
    reader = getattr(loaded.processor, "image_processor", loaded.processor)
    size = getattr(reader, "crop_size", None)
    if not getattr(reader, "do_center_crop", False) or not size:
        return picture
    scale = min(picture.width / size["width"], picture.height / size["height"])
    width, height = round(size["width"] * scale), round(size["height"] * scale)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
