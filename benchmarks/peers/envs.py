"""Environments of the peers: made from the registry once, found again by what is pinned in them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("~/.cache/tithe/peers")
TORCH = "torch==2.13.0"
SEAL = "sealed.txt"

Run = Callable[[Sequence[str]], None]


class Unavailable(Exception):
    """An environment that cannot be made here, in one line."""


@dataclass(frozen=True)
class Environment:
    """A folder ``name`` with ``pins`` beside the CPU build of torch, which goes in first lest a pin pull another."""

    name: str
    pins: tuple[str, ...]

    @property
    def seal(self) -> str:
        """What stands in a finished environment: other pins make another."""
        return "\n".join((TORCH, *self.pins))

    def place(self, root: Path) -> Path:
        """The folder, named after the pins too, so that a change of them never mixes two installations."""
        return root.expanduser() / f"{self.name}-{hashlib.sha256(self.seal.encode()).hexdigest()[:8]}"

    def commands(self, root: Path) -> list[list[str]]:
        """The commands that make it, in order."""
        place = self.place(root)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        return [[sys.executable, "-m", "venv", str(place)], [*pip, TORCH], [*pip, *self.pins]]

    def ready(self, root: Path) -> bool:
        """Whether it was made to the end."""
        seal = self.place(root) / SEAL
        return seal.exists() and seal.read_text() == self.seal

    def python(self, root: Path, run: Run | None = None) -> str:
        """Return its Python, made first where it is not there.

        Raises:
            Unavailable: a command failed; what was half made is removed.
        """
        place = self.place(root)
        if not self.ready(root):
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                for command in self.commands(root):
                    (run or called)(command)
            except Unavailable:
                shutil.rmtree(place, ignore_errors=True)
                raise
            (place / SEAL).write_text(self.seal)
        return str(place / "bin" / "python")


def called(command: Sequence[str]) -> None:
    """Run ``command``, silent unless it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        faults = [line for line in said if "error" in line.lower()] or said
        raise Unavailable(f"{' '.join(command[-2:])}: {(faults or ['no reason given'])[-1].strip()}")
