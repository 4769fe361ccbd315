"""The text of the zoo: Python's standard library, split by file into training and held-out text.

Run as a script it rewrites `src/tithe/zoo/text/heldout.txt` and its licence note.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TEXT = Path(__file__).parents[1] / "src" / "tithe" / "zoo" / "text"
HELDOUT_CHARS = 330_000
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo",
            "ensurepip", "__pycache__"}  # fmt: skip
MACHINE_MADE = re.compile(r"^(config-|_sysconfigdata)")

NOTE = """\
heldout.txt is made of source files of the standard library of CPython {version}:

{files}

Copyright (c) 2001 Python Software Foundation. All Rights Reserved.

They are distributed under the Python Software Foundation License Version 2
(https://docs.python.org/3/license.html), which lets them be reproduced and changed as long as this
notice is kept.

Changes made: blank lines and trailing white space are removed, and the files are joined in the order above.
"""


def sources() -> Iterator[tuple[str, str]]:
    """Yield `(path relative to Lib, text)` of each source file, ordered by a hash of the path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not LEFT_OUT.intersection(parts) and not any(MACHINE_MADE.match(part) for part in parts):
            found.append(path.relative_to(root).as_posix())
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        yield name, compact((root / name).read_text(encoding="utf8", errors="ignore"))


def compact(text: str) -> str:
    """Drop blank lines and trailing white space; end with a newline."""
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


def split() -> tuple[dict[str, str], dict[str, str]]:
    """Training and held-out files, `{path: text}` each.

    A file naming its own copyright holder may carry terms of its own, so only training reads it.
    """
    train: dict[str, str] = {}
    heldout: dict[str, str] = {}
    size = 0
    for name, text in sources():
        plain = 3_000 < len(text) < 60_000 and "copyright" not in text.lower() and text.isascii()
        if plain and size < HELDOUT_CHARS:
            heldout[name] = text
            size += len(text)
        else:
            train[name] = text
    return train, heldout


def main() -> None:
    """Write the held-out text and its licence note."""
    _, heldout = split()
    TEXT.mkdir(parents=True, exist_ok=True)
    (TEXT / "heldout.txt").write_text("".join(heldout.values()), encoding="utf8")
    files = "\n".join(f"    Lib/{name}" for name in heldout)
    (TEXT / "LICENSE-PSF.txt").write_text(NOTE.format(version=platform.python_version(), files=files))


if __name__ == "__main__":
    main()
