"""The pictures of a prompt as a model saw them: its crops, pictures or frames, and which image token is which patch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import fold

from tithe.bench.ask import last_logits
from tithe.bench.prompt import Inputs
from tithe.bench.visual import letter
from tithe.errors import BadInput
from tithe.flow import on
from tithe.page import Picture
from tithe.seams.evidence import Evidence
from tithe.types import Card, Method, Part, Site, Step, Tokens
from tithe.zoo import Loaded

SHARP, FEW = 128, 6
SIDES = (512, 224)


@dataclass(frozen=True)
class Board:
    """``units [N]`` is the patch that each image token of a prompt shows, in order, -1 for none; ``columns [T]`` that
    of each column of the prompt. Patches are counted picture by picture; ``aside`` tokens show none."""

    pictures: tuple[Picture, ...]
    units: Tensor
    columns: Tensor

    @property
    def patches(self) -> int:
        """How many patches there are."""
        return sum(picture.patches for picture in self.pictures)

    @property
    def aside(self) -> int:
        """How many image tokens are no patch of a picture."""
        return int((self.units < 0).sum())


@dataclass(frozen=True)
class Sight:
    """What an encoder step is shown of a prompt."""

    parts: tuple[Part, ...]
    origin: Tensor
    places: Tensor
    pixels: Tensor | None


def board(loaded: Loaded, originals: Sequence[Image.Image], inputs: Inputs) -> Board:
    """Return what ``inputs``, one row, show of the pictures or frames ``originals``, by letting the model look once.

    Raises:
        BadInput: no picture in the prompt, or image tokens that do not form a raster over it.
    """
    sight = _look(loaded.model, inputs)
    units = torch.full((len(sight.places),), -1)
    pictures: list[Picture] = []
    seen = 0
    for number, part in enumerate(sight.parts):
        rows, columns = part.grid
        if rows == 1 < columns:
            raise BadInput(
                f"image: the {len(part.places)} image tokens of this model form no grid over the picture, so none can "
                "be drawn."
            )
        cells = (sight.origin[part.places, 1:] + 0.5).floor().long()
        units[part.places] = seen + torch.arange(len(part.places))
        seen += len(part.places)
        picture = _seen(loaded, sight, part, originals)
        data, size = encoded(picture, len(sight.parts))
        flat = (cells[:, 0] * columns + cells[:, 1]).tolist()
        whole = flat == list(range(rows * columns))
        pictures.append(
            Picture(data, size, part.grid, None if whole else tuple(flat), part.image, part.cell, named(sight, number))
        )
    columns_of = torch.full((inputs["input_ids"].shape[1],), -1)
    columns_of[sight.places] = units
    return Board(tuple(pictures), units, columns_of)


def encoded(picture: Image.Image, among: int = 1) -> tuple[bytes, tuple[int, int]]:
    """Return a picture as a file of the size to be shown ``among`` others, and that size; small ones stay exact."""
    side = SIDES[among > FEW]
    if max(picture.size) > side:
        scale = side / max(picture.size)
        wide, high = (max(1, round(length * scale)) for length in picture.size)
        picture = picture.resize((wide, high), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(picture.size) <= SHARP:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), picture.size


def named(sight: Sight, number: int) -> str:
    """Return what to call a part beside the others, nothing where it is alone."""
    part, parts = sight.parts[number], sight.parts
    if len(parts) == 1:
        return ""
    same = [one for one in parts if one.image == part.image]
    picture = "" if len(same) == len(parts) else f"picture {letter(part.image)}"
    if part.time is not None:
        inside = f"frame {part.time + 1}"
    elif len(same) == 1:
        inside = ""
    elif part.whole:
        inside = "the whole"
    elif part.cell is not None:
        inside = f"crop {part.cell[0] + 1}, {part.cell[1] + 1}"
    else:
        before = [one for one in parts[:number] if one.image == part.image and not one.whole]
        inside = f"crop {len(before) + 1}"
    return ", ".join(filter(None, (picture, inside)))


def _look(model: Any, inputs: Inputs) -> Sight:
    found: list[Sight] = []

    def note(evidence: Evidence, tokens: Tokens) -> Tensor:
        assert evidence.prompt is not None and tokens.origin is not None
        pixels = evidence.pixels.float().cpu() if evidence.pixels is not None else None
        parts = tuple(evidence.parts)
        found.append(Sight(parts, tokens.origin.cpu(), evidence.prompt.places.cpu(), pixels))
        return torch.zeros_like(tokens.cols, dtype=torch.float32)

    card = Card("look", "", 0, None, None, "", ("vlm",), "definition", "none", "")
    step = Step(Site("encoder", tower="image", per="row"), score=note)
    with torch.no_grad(), on(model, Method(card, {}, (step,))):
        model(**inputs, **last_logits(model))
    if not found:
        raise BadInput("image is missing: the page shows a picture for this model.")
    return found[0]


def _seen(loaded: Loaded, sight: Sight, part: Part, originals: Sequence[Image.Image]) -> Image.Image:
    """Return what the tower was given of a part; of a packed tower the picture, or the first frame of its time."""
    if part.row is not None and sight.pixels is not None:
        shown = _unpatched(loaded, sight.pixels[part.row])
        if shown is not None:
            return shown
    if part.time is None:
        return originals[part.image]
    times = 1 + max(one.time or 0 for one in sight.parts if one.image == part.image)
    return originals[min(part.time * math.ceil(len(originals) / times), len(originals) - 1)]


def _unpatched(loaded: Loaded, slots: Tensor) -> Image.Image | None:
    """Return the picture of a tower's slots ``[slots, 3 p p]``, None where they are no square of square patches."""
    side, patch = math.isqrt(len(slots)), math.isqrt(slots.shape[1] // 3)
    if len(slots) - side**2 > 1 or 3 * patch**2 != slots.shape[1]:
        return None
    slots = slots[len(slots) - side**2 :]
    reader = getattr(loaded.processor, "image_processor", loaded.processor)
    pixels = fold(slots.T[None], (side * patch, side * patch), patch, stride=patch)[0]
    if getattr(reader, "do_normalize", False):
        mean, std = (torch.tensor(of)[:, None, None] for of in (reader.image_mean, reader.image_std))
        pixels = pixels * std + mean
    if getattr(reader, "do_rescale", True):
        pixels = pixels / (getattr(reader, "rescale_factor", None) or 1 / 255)
    return Image.fromarray(pixels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
