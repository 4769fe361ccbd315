"""What breaks first under pruning: reading a line, counting, finding, many pictures, and clips of frames.

A line of writing needs every digit of it, in order; a count needs every digit of a colour; a place needs the very
token; the one picture of six, or the one frame of eight, is lost with a token or two. None can be answered from
the gist of a picture. The scenes are those of `scenes`; `zoo:scenes` was trained on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from tithe.bench.prompt import Prompt, compose, tokenizer_of
from tithe.bench.tasks import scenes
from tithe.bench.tasks.base import Questions, Setting
from tithe.bench.visual import album, clip
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

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one scene; the context ends with its last picture, so that the question can come after it."""
        return composed(loaded, scenes.case(seed, "test", self.kinds))


def composed(loaded: Loaded, case: scenes.Case) -> Prompt:
    """Return a page, an album whose pictures are named, or a clip as the model takes it, and the question.

    Raises:
        BadInput: the prompt does not fit into the model's window, or a clip is put to a family that takes none.
    """
    images, question = case.scene.images, case.question
    room = len(tokenizer_of(loaded)(question.answer, add_special_tokens=False)["input_ids"])
    room += CHAT_ROOM if getattr(loaded.processor, "chat_template", None) else 1
    pictures = [Image.fromarray(image) for image in images]
    if case.scene.form == "clip":
        film = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        prompt = clip(loaded, film, question=question.text, room=room)
    elif case.scene.form == "album":
        prompt = album(loaded, pictures, question=question.text, room=room)
    else:
        prompt = compose(loaded, image=pictures[0], question=question.text, room=room)
    (one,) = prompt.asks
    asked = (replace(one, answer=question.answer),)
    return Prompt(prompt.inputs, asked, scenes.THINGS, scenes.shown(case.scene))


OCR = Pictures("ocr", ("ocr",))
COUNTING = Pictures("counting", ("counting",))
GROUNDING = Pictures("grounding", ("grounding",))
MANY_IMAGES = Pictures("many-images", ("which", "what"))
VIDEO = Pictures("video", ("when", "who", "where"))
