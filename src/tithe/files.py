"""Files are written whole or not at all: under a passing name first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there; a name that no file can have, or a home of nobody, is none."""
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a passing name beside ``path`` to write to; it becomes ``path`` when the block ends without an error."""
    target = Path(path).expanduser()
    part = target.with_name(f".{target.name}.{token_hex(4)}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file; a reader sees the old one or the new one, never a part. Returns where it stands."""
    with replacing(path) as part:
        part.write_bytes(content)
    return Path(path).expanduser()


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text as UTF-8, as `write_bytes` does."""
    return write_bytes(path, text.encode("utf-8"))
