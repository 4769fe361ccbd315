"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tithe import files


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert files.write_text(path, "one") == path
    files.write_bytes(path, b"two")
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]


def test_one_that_fails_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
