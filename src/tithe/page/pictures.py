"""A picture as the page shows it: a crop, a frame, or all of it, cut into the patches that the model saw."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG or JPEG whose area is cut evenly into `grid` = (rows, columns) cells.

    size: its width and height in pixels. cells: which cell each patch lies in, counted row by row; None: there is one
    patch in every cell. image: the number of the picture, or clip, that it is a part of. place: where it stands in the
    mosaic that crops of one picture form. name: what to call it, beside others.
    """

    data: bytes
    size: tuple[int, int]
    grid: tuple[int, int]
    cells: tuple[int, ...] | None = None
    image: int = 0
    place: tuple[int, int] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind is None:
            raise ValueError("data: these bytes start neither as a PNG nor as a JPEG file does")
        for name, (first, second) in (("size", self.size), ("grid", self.grid)):
            if first < 1 or second < 1:
                raise ValueError(f"{name}: {(first, second)} needs at least one of each")
        room = self.grid[0] * self.grid[1]
        if self.cells is not None and (
            len(set(self.cells)) < len(self.cells) or not all(0 <= cell < room for cell in self.cells)
        ):
            raise ValueError(f"cells: each must be another one of the {room} of the grid")

    @property
    def kind(self) -> str | None:
        """`png` or `jpeg`; None for what is neither."""
        return next((kind for start, kind in KINDS.items() if self.data.startswith(start)), None)

    @property
    def patches(self) -> int:
        """How many patches the model saw of it."""
        return self.grid[0] * self.grid[1] if self.cells is None else len(self.cells)

    def to_plain(self) -> dict[str, object]:
        """Return it for JSON, with the picture as an address that holds its bytes."""
        return {
            "source": f"data:image/{self.kind};base64,{b64encode(self.data).decode()}",
            "size": self.size,
            "grid": self.grid,
            "cells": self.cells,
            "image": self.image,
            "place": self.place,
            "name": self.name,
        }
