"""The journal of a benchmark: one committed row a case, so that a run outlives a crash and goes on where it stopped.

A SQLite file to which rows are only ever added. A case is known by its work, which names everything that its outcome
depends on, and by its number: the same command finds what is done and does the rest.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.bench.figures import Figures
from tithe.bench.tasks.base import Answer
from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe.budget import Keep

VERSION = 1
KIND = "tithe journal"
WAIT = 60.0
TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, started TEXT NOT NULL, command TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS works (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS parts (run INTEGER, work INTEGER, cases INTEGER NOT NULL, PRIMARY KEY (run, work));
CREATE TABLE IF NOT EXISTS cases (work INTEGER, number INTEGER, told TEXT NOT NULL, PRIMARY KEY (work, number));
CREATE TABLE IF NOT EXISTS times (work INTEGER, how TEXT, told TEXT NOT NULL, PRIMARY KEY (work, how));
CREATE TABLE IF NOT EXISTS refusals (work INTEGER PRIMARY KEY, reason TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Work:
    """One method at one budget on one task: what the outcome of each of its cases depends on.

    ``params``: the further parameters that the method was given, as text; ``environment``: see `environment`.
    """

    model: str
    task: str
    digest: str
    question: str | None
    length: int | None
    seed: int
    method: str
    keep: Keep | None
    params: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The work as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_key(cls, key: str) -> Work:
        """Read a key back."""
        told = json.loads(key)
        return cls(**told | {"environment": tuple((name, value) for name, value in told["environment"])})


@dataclass(frozen=True)
class Case:
    """The outcome of one case; ``agreement`` and ``kl`` against the untouched model, None where neither is known."""

    number: int
    quality: float
    answers: tuple[Answer, ...]
    figures: Figures
    extras: Mapping[str, float]
    agreement: float | None
    kl: float | None
    seconds: float

    def to_json(self) -> str:
        """Return the case as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Read a line back."""
        told = json.loads(text)
        answers = tuple(Answer(**answer) for answer in told.pop("answers"))
        return cls(answers=answers, figures=Figures(**told.pop("figures")), **told)


class Journal:
    """A journal at ``path``, made where there is none; None: one in memory, gone with the process.

    Raises:
        BadInput: no journal, one of another version, or a place that cannot be written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self._ids: dict[str, int] = {}
        if path is not None and not Path(path).expanduser().parent.is_dir():
            raise BadInput(f"journal='{path}': the folder '{Path(path).expanduser().parent}' does not exist.")
        try:
            place = ":memory:" if path is None else str(Path(path).expanduser())
            self._base = sqlite3.connect(place, timeout=WAIT, isolation_level=None)
            self._open()
        except sqlite3.Error as error:
            raise BadInput(f"journal='{path}' cannot be opened as a journal: {error}.") from error

    def _open(self) -> None:
        base = self._base
        named = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not named:
            base.execute("PRAGMA journal_mode = WAL")
            base.executescript(f"BEGIN;{TABLES}COMMIT;")
            about = (("kind", KIND), ("version", str(VERSION)), ("created", _now()))
            base.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", about)
            return
        about_it = dict(base.execute("SELECT name, value FROM about")) if "about" in named else {}
        if about_it.get("kind") != KIND:
            raise BadInput(f"journal='{self.path}' is a database of something else; it was left as it is.")
        if about_it.get("version") != str(VERSION):
            raise BadInput(
                f"journal='{self.path}' has version {about_it.get('version')} of the format; this Tithe reads "
                f"{VERSION}. Give --journal another name; the file was left as it is."
            )

    def begin(self, command: str, works: Mapping[Work, int]) -> int:
        """Note that ``command`` runs so many cases of each work; the same command over the same works is one run."""
        wanted = {self._id(work): cases for work, cases in works.items()}
        for (run,) in self._base.execute("SELECT id FROM runs WHERE command = ? ORDER BY id DESC", (command,)):
            if wanted == dict(self._base.execute("SELECT work, cases FROM parts WHERE run = ?", (run,))):
                return int(run)
        self._base.execute("BEGIN IMMEDIATE")
        row = self._base.execute("INSERT INTO runs (started, command) VALUES (?, ?)", (_now(), command))
        run = int(row.lastrowid or 0)
        self._base.executemany("INSERT INTO parts VALUES (?, ?, ?)", [(run, *pair) for pair in wanted.items()])
        self._base.execute("COMMIT")
        return run

    def add(self, work: Work, case: Case) -> None:
        """Commit one case; one that is there already stays as it is."""
        told = (self._id(work), case.number, case.to_json())
        self._base.execute("INSERT OR IGNORE INTO cases VALUES (?, ?, ?)", told)

    def cases(self, work: Work) -> dict[int, Case]:
        """Return the cases of a work by their numbers."""
        rows = self._base.execute("SELECT number, told FROM cases WHERE work = ?", (self._id(work),))
        return {number: Case.from_json(told) for number, told in sorted(rows)}

    def done(self, work: Work) -> set[int]:
        """Return the numbers of the cases that are there."""
        return {
            number for (number,) in self._base.execute("SELECT number FROM cases WHERE work = ?", (self._id(work),))
        }

    def add_times(self, work: Work, how: str, told: Mapping[str, Any]) -> None:
        """Commit the timings of a work, taken as ``how`` says."""
        self._base.execute("INSERT OR IGNORE INTO times VALUES (?, ?, ?)", (self._id(work), how, json.dumps(told)))

    def times(self, work: Work, how: str) -> dict[str, Any] | None:
        """Return the timings of a work, None where it was not timed in this way."""
        row = self._base.execute("SELECT told FROM times WHERE work = ? AND how = ?", (self._id(work), how)).fetchone()
        return None if row is None else json.loads(row[0])

    def refuse(self, work: Work, reason: str) -> None:
        """Commit that a work is refused, and why; what broke is not noted, so that it is tried again."""
        self._base.execute("INSERT OR IGNORE INTO refusals VALUES (?, ?)", (self._id(work), reason))

    def refusal(self, work: Work) -> str | None:
        """Return why a work was refused, None where it was not."""
        row = self._base.execute("SELECT reason FROM refusals WHERE work = ?", (self._id(work),)).fetchone()
        return None if row is None else str(row[0])

    def runs(self) -> list[tuple[int, str, str]]:
        """Return the runs as (number, when begun, command), oldest first."""
        return list(self._base.execute("SELECT id, started, command FROM runs ORDER BY id"))

    def works(self, run: int | None = None) -> Iterator[tuple[Work, int | None]]:
        """Yield the works of a run and how many cases it wanted; of all runs where none is named."""
        if run is None:
            rows = self._base.execute("SELECT key, NULL FROM works ORDER BY id").fetchall()
        else:
            asked = "SELECT key, cases FROM parts JOIN works ON id = work WHERE run = ? ORDER BY work"
            rows = self._base.execute(asked, (run,)).fetchall()
        for key, cases in rows:
            yield Work.from_key(key), cases

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _id(self, work: Work) -> int:
        key = work.key
        if key not in self._ids:
            self._base.execute("INSERT OR IGNORE INTO works (key) VALUES (?)", (key,))
            self._ids[key] = self._base.execute("SELECT id FROM works WHERE key = ?", (key,)).fetchone()[0]
        return self._ids[key]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
