"""From what a user gives to a prompt, with everything that can be wrong refused before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from tithe.bench.ask import Where
    from tithe.bench.prompt import Prompt
    from tithe.zoo import Loaded


@dataclass(frozen=True)
class Given:
    """A text, a picture and a question, read and checked."""

    text: str
    picture: Image | None
    question: str
    after: bool
    room: int

    @classmethod
    def read(
        cls, prompt: str | None, file: Path | None, image: Path | None, question: str, after: bool, room: int
    ) -> Given:
        """Read what was given; refuse nothing at all, and two texts."""
        from tithe.bench.prompt import read_image, read_text

        if prompt is not None and file is not None:
            raise BadInput("prompt and file were both given: give one text.")
        if room < 1:
            raise BadInput(f"max_new_tokens={room} is out of range; give at least 1.")
        text = read_text(file) if file is not None else prompt or ""
        if image is None and not text.strip():
            raise BadInput("prompt is empty: give --prompt, --file or --image.")
        if after and not question.strip():
            raise BadInput(
                "question is empty: --after compresses first and asks afterwards, so there must be a question."
            )
        return cls(text, read_image(image) if image is not None else None, question, after, room)

    @property
    def where(self) -> Where:
        """The place of the question."""
        return "after" if self.after else "inside"

    def prompt(self, loaded: Loaded) -> Prompt:
        """Return it as the model's inputs."""
        from tithe.bench.prompt import compose

        return compose(loaded, text=self.text, image=self.picture, question=self.question, room=self.room)


def writable(out: Path) -> Path:
    """Return ``out`` if a file can be written there, or raise in one line why not."""
    folder = out.expanduser().parent
    if not folder.is_dir():
        raise BadInput(f"out='{out}': the folder '{folder}' does not exist.")
    if out.is_dir():
        raise BadInput(f"out='{out}' is a folder; give the name of a file.")
    return out.expanduser()
