"""The page that a run's figures make: ``page(figures)`` is Markdown, and starts with where Tithe loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.rows import Row

HEAD = """# Beside others' packages

`python -m benchmarks.peers --write` made this page: it sets up an environment for each package from the registry, lets
both sides do the same work in turns, each on one thread, and stores what came out in [`peers.json`](peers.json). Ratios
are ours over theirs, of a time or of bytes: below 1 is better for us. A time's brackets hold the quartiles of its
rounds, a mark's the 95% bootstrap interval of the difference over cases. Nobody wins where they hold a tie, give or
take 2% of a ratio."""
WORDS = {"ours": "Tithe", "theirs": "**theirs**", "even": "even", "agreement": ""}


def page(figures: Mapping[str, Any]) -> str:
    """Return the page of what stands in ``docs/peers.json``."""
    parts = [HEAD, "## Where we lose", losing(figures), "## In all", tally(figures)]
    for name, found in figures.items():
        parts += [f"## {name}", *section(found)]
    return "\n\n".join(parts) + "\n"


def losing(figures: Mapping[str, Any]) -> str:
    """Return every figure in which a peer is better, and what a peer has that we have not."""
    lines = [
        f"- {name}: {line(row)}" for name, found in figures.items() for row in rows(found) if row.verdict() == "theirs"
    ]
    lines += [
        f"- {name}: not measured to the end: {found['fault']}" for name, found in figures.items() if found["fault"]
    ]
    lines += [f"- {name}: {lack}" for name, found in figures.items() for lack in found["lacks"]]
    return "\n".join(lines) or "In none of the figures below."


def tally(figures: Mapping[str, Any]) -> str:
    """Return how often each side has the better of a figure."""
    lines = ["| peer | figure | Tithe better | even | theirs better |", "| --- | --- | --- | --- | --- |"]
    for name, found in figures.items():
        verdicts: dict[str, list[str]] = {}
        for row in rows(found):
            if row.kind != "agreement":
                verdicts.setdefault(row.figure, []).append(row.verdict())
        for figure, given in verdicts.items():
            ours, even, theirs = (given.count(verdict) for verdict in ("ours", "even", "theirs"))
            lines.append(f"| {name} | {figure} | {ours} | {even} | {theirs} |")
    return "\n".join(lines)


def section(found: Mapping[str, Any]) -> list[str]:
    """Return the parts of one peer."""
    pins = ", ".join(f"`{pin}`" for pin in found["pins"])
    parts = [found["title"], f"Its environment: {pins}. {found['on']}.", *found["notes"]]
    held: dict[str, list[Row]] = {}
    for row in rows(found):
        held.setdefault(row.figure, []).append(row)
    for figure, given in held.items():
        parts += [f"### {figure}", table(given)]
    return parts


def table(given: Sequence[Row]) -> str:
    """Return the rows of one figure."""
    if given[0].kind == "agreement":
        head = ["| case | agreement | n |", "| --- | --- | --- |"]
        return "\n".join([*head, *(f"| {row.case} | {told(row)} {row.unit} | {row.n} |" for row in given)])
    head = ["| case | Tithe | theirs | ours against theirs | n | better |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join(
        [
            *head,
            *(
                f"| {row.case} | {amount(row, row.ours, row.ours_untouched)} | "
                f"{amount(row, row.theirs, row.theirs_untouched)} | {told(row)} | {row.n} | {WORDS[row.verdict()]} |"
                for row in given
            ),
        ]
    )


def line(row: Row) -> str:
    """Return a row in one line."""
    if row.kind == "agreement":
        return f"{row.figure}, {row.case}: {told(row)} {row.unit}"
    ours, theirs = amount(row, row.ours, row.ours_untouched), amount(row, row.theirs, row.theirs_untouched)
    return f"{row.figure}, {row.case}: {ours} here, {theirs} there; {told(row)}"


def amount(row: Row, value: float, untouched: float | None) -> str:
    """Return a figure with its unit, and what it is of the untouched model's."""
    said = f"{value:.1f} ms" if row.unit == "ms" else f"{value:.3f} {row.unit}".strip()
    return said if untouched is None else f"{said} ({untouched:.2f}x untouched)"


def told(row: Row) -> str:
    """Return what the comparison comes to."""
    if row.kind == "ratio":
        spread = "" if row.n == 1 else f" [{row.low:.2f}, {row.high:.2f}]"
        return f"{row.value:.2f}x{spread}"
    sign = "+" if row.kind == "difference" else ""
    return f"{row.value:{sign}.3f} [{row.low:{sign}.3f}, {row.high:{sign}.3f}]"


def rows(found: Mapping[str, Any]) -> list[Row]:
    """Return the rows of one peer."""
    return [Row(**row) for row in found["rows"]]
