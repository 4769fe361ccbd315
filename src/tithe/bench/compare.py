"""Two runs beside each other: the same cases under both, and what their paired differences say."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tithe.bench import specs, stats
from tithe.bench.journal import Case, Journal, Work
from tithe.budget import Keep
from tithe.errors import BadInput, unknown

SPELLED = re.compile(r"(?P<path>.+?)(?:#(?P<run>\d+))?(?:::(?P<method>.+?)(?:@(?P<keep>[^@]+))?)?")


@dataclass(frozen=True)
class Side:
    """One run: the works of a journal, of one run in it, or of one method (at one budget) in that."""

    spelled: str
    works: dict[Work, dict[int, Case]]
    named: bool

    @classmethod
    def read(cls, spelled: str) -> Side:
        """Read ``journal``, ``journal#run``, ``journal::method`` or ``journal::method@keep``.

        Raises:
            BadInput: no such journal, run or method in it.
        """
        parts = SPELLED.fullmatch(spelled)
        if parts is None or not _is_file(parts["path"]):
            raise BadInput(f"journal='{spelled if parts is None else parts[1]}' does not exist.")
        path, run = parts["path"], parts["run"]
        with Journal(path) as journal:
            runs = [number for number, _, _ in journal.runs()]
            if run is not None and int(run) not in runs:
                raise BadInput(
                    f"run={run} is not in journal='{path}'. Possible: {', '.join(map(str, runs)) or 'none'}."
                )
            limits = dict(journal.works(None if run is None else int(run)))
            works = {work: _first(journal.cases(work), limits[work]) for work in limits}
        works = {work: cases for work, cases in works.items() if cases}
        method, keep = parts["method"], parts["keep"]
        if method is not None:
            known = {work.method for work in works}
            if method not in known:
                raise unknown("method", method, known)
            budget = None if keep is None else specs.parse_keep(keep)
            works = {
                work: cases for work, cases in works.items() if work.method == method and budget in (None, work.keep)
            }
            if not works:
                raise BadInput(f"{spelled!r}: {method} was not run at keep={keep}.")
        return cls(spelled, works, method is not None)


@dataclass(frozen=True)
class Change:
    """One piece of work under both; ``difference`` is the second's quality less the first's, case by case.

    ``low`` to ``high``: its 95% interval; ``agreement``: share of answers that are the same in both.
    """

    model: str
    task: str
    question: str | None
    length: int | None
    seed: int
    first: str
    first_keep: Keep | None
    second: str
    second_keep: Keep | None
    quality_first: float
    quality_second: float
    difference: float
    low: float | None
    high: float | None
    verdict: str
    needed: int | None
    agreement: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """All that two runs have in common; ``differing``: what of their environments is not the same, as (name, a, b)."""

    changes: tuple[Change, ...]
    differing: tuple[tuple[str, str, str], ...]
    only_first: int
    only_second: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


def compare(first: Side, second: Side) -> Comparison:
    """Return what changes from ``first`` to ``second`` on the cases that both have.

    Where both name a method these are set against each other, whatever their budgets; else each method at each budget
    against itself.

    Raises:
        BadInput: nothing in common.
    """
    across = first.named and second.named
    places: dict[tuple[Any, ...], list[Work]] = {}
    for other in second.works:
        places.setdefault(_place(other, across), []).append(other)
    changes: list[Change] = []
    differing: dict[tuple[str, str, str], None] = {}
    met: set[Work] = set()
    for work, cases in first.works.items():
        for other in places.get(_place(work, across), ()):
            theirs = second.works[other]
            common = sorted(set(cases) & set(theirs))
            if not common or (work == other and (across or first.spelled == second.spelled)):
                continue
            met.add(other)
            met.add(work)
            changes.append(_change(work, other, [(cases[at], theirs[at]) for at in common]))
            here, there = dict(work.environment), dict(other.environment)
            for name in sorted({*here, *there}):
                if here.get(name) != there.get(name):
                    differing[name, here.get(name, "-"), there.get(name, "-")] = None
    if not changes:
        raise BadInput(f"{first.spelled!r} and {second.spelled!r} have no case in common.")
    left = [sum(work not in met for work in side.works) for side in (first, second)]
    return Comparison(tuple(changes), tuple(differing), *left)


def _change(work: Work, other: Work, pairs: list[tuple[Case, Case]]) -> Change:
    ours, theirs = [one.quality for one, _ in pairs], [two.quality for _, two in pairs]
    bounded = all(0 <= value <= 1 for value in (*ours, *theirs))
    told = stats.interval(stats.paired(theirs, ours), 1.0 if bounded else None)
    said = [
        one.given.split() == two.given.split()
        for mine, yours in pairs
        for one, two in zip(mine.answers, yours.answers, strict=True)
    ]
    return Change(
        work.model,
        work.task,
        work.question,
        work.length,
        work.seed,
        work.method,
        work.keep,
        other.method,
        other.keep,
        sum(ours) / len(ours),
        sum(theirs) / len(theirs),
        told.mean,
        told.low,
        told.high,
        stats.verdict(told),
        told.needed,
        sum(said) / len(said) if said else None,
        len(pairs),
    )


def _place(work: Work, across: bool) -> tuple[Any, ...]:
    place = (work.task, work.digest, work.question, work.length, work.seed)
    return place if across else (*place, work.method, work.keep, work.params)


def _is_file(path: str) -> bool:
    try:
        return Path(path).expanduser().is_file()
    except (OSError, RuntimeError):  # a name too long, a home of nobody
        return False


def _first(cases: dict[int, Case], limit: int | None) -> dict[int, Case]:
    return cases if limit is None else {at: case for at, case in cases.items() if at < limit}
