"""From what a user gives to a prompt, with everything that can be wrong refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tithe.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tithe.bench.ask import Where
    from tithe.bench.prompt import Prompt
    from tithe.zoo import Loaded

MODELS = "zoo:llm (the default), reader, scenes (that for videos), vlm, vit, ssm; a folder; a hub id."
Chosen = Annotated[str | None, typer.Option("--model", "-m", help=MODELS)]
Pictures = Annotated[
    list[Path] | None, typer.Option("--image", "-i", help="A picture to look at; several times for several.")
]
Video = Annotated[Path | None, typer.Option("--video", help="A folder with a picture for each frame of a clip.")]
Frames = Annotated[int | None, typer.Option("--frames", help="At most so many frames, spread evenly over the clip.")]

TEXTS, CLIPS = "zoo:llm", "zoo:scenes"


@dataclass(frozen=True)
class Given:
    """A text, pictures or the frames ``[F, 3, H, W]`` of a clip, and a question, read and checked."""

    text: str
    pictures: tuple[Image, ...]
    film: Tensor | None
    question: str
    after: bool
    room: int

    @classmethod
    def read(
        cls,
        prompt: str | None,
        file: Path | None,
        images: Sequence[Path] | None,
        question: str,
        after: bool,
        room: int,
        video: Path | None = None,
        frames: int | None = None,
    ) -> Given:
        """Read what was given; refuse nothing at all, two texts, and what does not go together."""
        from tithe.bench.prompt import read_image, read_text

        if prompt is not None and file is not None:
            raise BadInput("prompt and file were both given: give one text.")
        if images and video is not None:
            raise BadInput("image and video were both given: give pictures, or the folder of one clip.")
        if frames is not None and video is None:
            raise BadInput(f"frames={frames} was given without a video: give --video and the folder of its frames.")
        if frames is not None and frames < 1:
            raise BadInput(f"frames={frames} is out of range; give at least 1.")
        if room < 1:
            raise BadInput(f"max_new_tokens={room} is out of range; give at least 1.")
        text = read_text(file) if file is not None else prompt or ""
        if not images and video is None and not text.strip():
            raise BadInput("prompt is empty: give --prompt, --file, --image or --video.")
        if after and not question.strip():
            raise BadInput(
                "question is empty: --after compresses first and asks afterwards, so there must be a question."
            )
        pictures = tuple(read_image(image) for image in images or ())
        return cls(text, pictures, _film(video, frames) if video is not None else None, question, after, room)

    @property
    def where(self) -> Where:
        """The place of the question."""
        return "after" if self.after else "inside"

    @property
    def model(self) -> str:
        """The model to ask where none was named."""
        return TEXTS if self.film is None else CLIPS

    @property
    def shown(self) -> tuple[Image, ...]:
        """The pictures, or the frames as pictures."""
        from PIL.Image import fromarray

        if self.film is None:
            return self.pictures
        return tuple(fromarray(frame.permute(1, 2, 0).numpy()) for frame in self.film)

    def prompt(self, loaded: Loaded) -> Prompt:
        """Return it as the model's inputs."""
        from tithe.bench import visual
        from tithe.bench.prompt import compose

        if self.film is not None:
            return visual.clip(loaded, self.film, text=self.text, question=self.question, room=self.room)
        if len(self.pictures) > 1:
            return visual.album(loaded, self.pictures, text=self.text, question=self.question, room=self.room)
        picture = self.pictures[0] if self.pictures else None
        return compose(loaded, text=self.text, image=picture, question=self.question, room=self.room)


def writable(out: Path) -> Path:
    """Return ``out`` if a file can be written there, or raise in one line why not."""
    try:
        folder = out.expanduser().parent
        there, taken = folder.is_dir(), out.expanduser().is_dir()
    except (OSError, RuntimeError) as error:
        raise BadInput(f"out='{out}' cannot be written: {error}.") from error
    if not there:
        raise BadInput(f"out='{out}': the folder '{folder}' does not exist.")
    if taken:
        raise BadInput(f"out='{out}' is a folder; give the name of a file.")
    return out.expanduser()


def _film(video: Path, frames: int | None) -> Tensor:
    from tithe.frames import read_frames

    return read_frames(video, frames)
