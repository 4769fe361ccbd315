"""Two workers that take turns: never at work at the same time, and neither always first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": "",
}


class Failed(Exception):
    """A worker that could not do what it was asked, in one line."""


class Worker:
    """A process that does one job at a time; ``log`` takes what its libraries print."""

    def __init__(self, python: str, module: str, log: Path) -> None:
        self.name, self.log = module.rsplit(".", 1)[-1], log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module],
                cwd=ROOT,
                env={**os.environ, **OFFLINE},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def do(self, job: str, **given: Any) -> Any:
        """Return what ``job`` gives.

        Raises:
            Failed: the job raised, or the process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"job": job, **given}) + "\n")
            self._process.stdin.flush()
            told = self._process.stdout.readline()
        except BrokenPipeError:
            told = ""
        if not told:
            last = [line for line in self.log.read_text().splitlines() if line.strip()]
            raise Failed(f"{self.name}: the worker ended; {last[-1] if last else 'it said nothing'}")
        answer = json.loads(told)
        if "error" in answer:
            raise Failed(f"{self.name}, {job}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.communicate()


class Pair(NamedTuple):
    """Ours and theirs."""

    ours: Worker
    theirs: Worker

    def both(self, job: str, **given: Any) -> tuple[Any, Any]:
        """Return what the same job gives on both sides."""
        return self.ours.do(job, **given), self.theirs.do(job, **given)


@contextmanager
def pair(python: str, ours: str, theirs: str, folder: Path) -> Iterator[Pair]:
    """Start both workers: ours under this Python, theirs under ``python``."""
    package = "benchmarks.peers.workers"
    mine = Worker(sys.executable, f"{package}.{ours}", folder / f"{ours}-beside-{theirs}.log")
    other = Worker(python, f"{package}.{theirs}", folder / f"{theirs}.log")
    try:
        yield Pair(mine, other)
    finally:
        mine.close()
        other.close()


def rounds(
    workers: Pair, cases: Sequence[tuple[str, dict[str, Any], dict[str, Any]]], job: str, repeats: int, warm: int = 1
) -> dict[str, tuple[list[float], list[float]]]:
    """Time ``job`` for every case on both sides in turns, ``repeats`` times after ``warm``; return seconds.

    A case is its name, what ours is given and what theirs is given.
    """
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, _, _ in cases}
    for turn in range(repeats + warm):
        for name, mine, other in cases:
            jobs = [(0, workers.ours, mine), (1, workers.theirs, other)]
            for side, worker, given in jobs if turn % 2 else jobs[::-1]:
                seconds = worker.do(job, **given)
                if turn >= warm:
                    found[name][side].append(seconds)
    return found
