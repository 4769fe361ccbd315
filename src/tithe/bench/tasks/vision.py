"""Pictures: name the digits of a canvas, or answer a question about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tithe.bench import figures
from tithe.bench.ask import Attach
from tithe.bench.prompt import Ask, Inputs, Prompt, compose, tokenizer_of
from tithe.bench.tasks import canvas
from tithe.bench.tasks.base import Answer, Marked, Questions, Setting, Task
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

BATCH = 64
CLASSES = canvas.EMPTY + 1
GROUPS = len(canvas.QUADRANTS)


@dataclass(frozen=True)
class Vqa(Questions):
    """One question about a canvas of handwritten digits: what digit, what colour, where."""

    name: str = "vqa"
    kind: HostKind = "vlm"
    home: str | None = "zoo:vlm"

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one picture; the context ends with it, so that the question can come after it.

        There is room for the end of the answer: a method that fires once the prompt has been read gets to fire.
        """
        case = canvas.vqa_case(seed, "test")
        room = len(tokenizer_of(loaded)(case.answer, add_special_tokens=False)["input_ids"])
        room += 8 if getattr(loaded.processor, "chat_template", None) else 1
        prompt = compose(loaded, image=Image.fromarray(case.image), question=case.question, room=room)
        (one,) = prompt.asks
        asked = (Ask(one.ids, case.question, case.answer, room),)
        return Prompt(prompt.inputs, asked, canvas.THINGS, case.shown)


@dataclass(frozen=True)
class Digits(Task):
    """The digit of each quadrant of a canvas; a case's quality is the share named right, empty quadrants aside."""

    name: str = "digits"
    kind: HostKind = "vit"
    batch: int = BATCH

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Classify the cases in one batch."""
        self.check(loaded, setting)
        drawn = [canvas.digits_case(setting.of(case), "test") for case in cases]
        inputs = _pixels(loaded, [case.image for case in drawn])
        with torch.no_grad(), attach() as run:
            said = _groups(loaded.model(**inputs).logits)
            width = patches_and_cls(loaded.model, inputs) if run is not None else None
            cost = figures.of_run(run, width, len(drawn)) if run is not None else figures.NOTHING
        answers = [_marked(case.labels, row) for case, row in zip(drawn, said, strict=True)]
        return [
            Marked(case, fmean(answer.score for answer in mine), mine, cost)
            for case, mine in zip(cases, answers, strict=True)
        ]

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return eight pictures: one alone is over before a clock can tell."""
        self.check(loaded, setting)
        return _pixels(loaded, [canvas.digits_case(seed, "test").image for seed in setting.seeds()[:8]])

    def check(self, loaded: Loaded, setting: Setting) -> None:
        """Refuse a classifier of other things."""
        labels = getattr(loaded.model.config, "num_labels", 0)
        if labels != GROUPS * CLASSES or not hasattr(loaded.model, "classifier"):
            raise BadInput(
                f"task={self.name!r} needs a classifier with {GROUPS} x {CLASSES} labels, four quadrants' digits; "
                f"this {type(loaded.model).__name__} has {labels}."
            )


def labelled(model: Any, logits: Tensor) -> str:
    """Return in words what a classifier says of one picture: its label, or the digits of a canvas."""
    if logits.shape[-1] == GROUPS * CLASSES:
        return named(model, _groups(logits)[0].tolist())
    return str(model.config.id2label[int(logits[0].argmax())])


def named(model: Any, digits: list[int]) -> str:
    """Return in words the digits of the quadrants of a canvas."""
    names = model.config.id2label
    return ", ".join(str(names[group * CLASSES + digit]) for group, digit in enumerate(digits))


def patches_and_cls(model: Any, inputs: Inputs) -> int:
    """Return the number of tokens that enter the first block of a vision tower."""
    from tithe.hosts import find

    widths: list[int] = []
    vision = find(model).vision
    assert vision is not None

    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        widths.append(args[0].shape[1])

    handle = vision.layers[0].register_forward_pre_hook(note)
    try:
        with torch.no_grad():
            model(**{name: tensor[:1] for name, tensor in inputs.items()})
    finally:
        handle.remove()
    return widths[0]


def _pixels(loaded: Loaded, images: list[canvas.Image]) -> Inputs:
    batch = loaded.processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
    return {"pixel_values": batch["pixel_values"].to(loaded.model.device, loaded.model.dtype)}


def _groups(logits: Tensor) -> Tensor:
    return logits.view(-1, GROUPS, CLASSES).argmax(-1).cpu()


def _marked(labels: np.ndarray, named: Tensor) -> tuple[Answer, ...]:
    return tuple(
        Answer(place, str(label), str(given), float(label == given))
        for place, label, given in zip(canvas.QUADRANTS, labels.tolist(), named.tolist(), strict=True)
        if label != canvas.EMPTY
    )


VQA = Vqa()
DIGITS = Digits()
