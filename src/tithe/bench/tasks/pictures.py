"""What breaks first under pruning: reading a line, counting, finding, many pictures, and clips of frames.

A line of writing needs every digit of it, in order; a count needs every digit of a colour; a place needs the very
token; the one picture of six, or the one frame of eight, is lost with a token or two. None can be answered from
the gist of a picture. The scenes are those of `scenes`; `zoo:scenes` was trained on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from tithe import frames
from tithe.bench.prompt import Ask, Inputs, Prompt, check_window, tokenizer_of
from tithe.bench.tasks import scenes
from tithe.bench.tasks.base import Questions, Setting
from tithe.types import HostKind
from tithe.zoo import Loaded

CHAT_ROOM = 16


@dataclass(frozen=True)
class Pictures(Questions):
    """One question a scene, of these kinds; right is an answer whose every word is."""

    name: str
    kinds: tuple[scenes.Kind, ...]
    kind: HostKind = "vlm"
    home: str | None = "zoo:scenes"

    def prompts(self, loaded: Loaded, setting: Setting) -> Iterator[Prompt]:
        """Yield one scene a case; the context ends with its last picture, so that the question can come after it."""
        for seed in setting.seeds():
            yield composed(loaded, scenes.case(seed, "test", self.kinds))


def composed(loaded: Loaded, case: scenes.Case) -> Prompt:
    """Return a page, an album whose pictures are named, or a clip as the model takes it, and the question.

    Raises:
        BadInput: the prompt does not fit into the model's window, or a clip is put to a family that takes none.
    """
    tokenizer, model = tokenizer_of(loaded), loaded.model
    images, question = case.scene.images, case.question
    room = len(tokenizer(question.answer, add_special_tokens=False)["input_ids"])
    room += CHAT_ROOM if getattr(loaded.processor, "chat_template", None) else 1
    if case.scene.form == "clip":
        before, behind = _rendered(loaded, [frames.PLACE], question.text)
        film = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        reader = getattr(loaded.processor, "image_processor", loaded.processor)
        inputs = frames.compose(model, tokenizer, frames.encode(model, reader, film), before)
    else:
        album = case.scene.form == "album"
        said = [part for n in range(len(images)) for part in ([f"picture {scenes.NAMES[n]}"] if album else []) + [None]]
        before, behind = _rendered(loaded, said, question.text)
        pictures = [Image.fromarray(image) for image in images]
        inputs = _on(model, loaded.processor(images=[pictures], text=[before], return_tensors="pt"))
    ids = tuple(tokenizer(behind, add_special_tokens=False)["input_ids"])
    check_window(model, inputs["input_ids"].shape[1] + len(ids) + room)
    return Prompt(inputs, (Ask(ids, question.text, question.answer, room),))


def _rendered(loaded: Loaded, said: Sequence[str | None], question: str) -> tuple[str, str]:
    """Return a prompt in two parts, up to the question and from it on; None stands for a picture."""
    processor = loaded.processor
    if not getattr(processor, "chat_template", None):
        token = getattr(processor, "image_token", "<image>")
        return " ".join(token if part is None else part for part in said) + " ", question
    content: list[dict[str, str]] = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in said
    ]
    content.append({"type": "text", "text": question})
    whole: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    place = whole.rindex(question)
    return whole[:place], whole[place:]


def _on(model: Any, batch: Any) -> Inputs:
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in batch.items()
    }


OCR = Pictures("ocr", ("ocr",))
COUNTING = Pictures("counting", ("counting",))
GROUNDING = Pictures("grounding", ("grounding",))
MANY_IMAGES = Pictures("many-images", ("which", "what"))
VIDEO = Pictures("video", ("when", "who", "where"))
