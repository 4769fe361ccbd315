"""Tables of benchmark rows, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from tithe.bench import Loser, Refusal, Row
    from tithe.bench.attack import Attacked
    from tithe.budget import Keep

UNITS = ("", "k", "M", "G", "T", "P")


def results(rows: Sequence[Row], title: str) -> Table:
    """Return one table for rows of one model: qualities side by side by task and place of the question."""
    asked = list(dict.fromkeys((row.task, row.question) for row in rows))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("method", "keep", "tokens", "KV bytes", "FLOPs", "prefill", "decode"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for task, question in asked:
        table.add_column(task if question is None else f"{task}\n{question}", justify="right", no_wrap=True)
    table.add_column("saving")
    runs: dict[tuple[str, Keep | None], dict[tuple[str, str | None], Row]] = {}
    for row in rows:
        runs.setdefault((row.method, row.keep), {})[row.task, row.question] = row
    for (method, keep), mine in runs.items():
        first = next(iter(mine.values()))
        qualities = [f"{mine[column].quality:.2f}" if column in mine else "-" for column in asked]
        table.add_row(
            method,
            budget(keep),
            share(first.kept_tokens, first.total_tokens),
            amount(first.kv_bytes, "B"),
            amount(first.flops),
            ratio(first.prefill_ratio),
            ratio(first.decode_ratio),
            *qualities,
            first.saving,
        )
    return table


def split(rows: Sequence[Row]) -> Table | None:
    """Return where the time went, in milliseconds, or None where no row has pictures."""
    if all(row.encode_s is None for row in rows):
        return None
    table = Table(title="milliseconds by stage", title_justify="left", box=None, pad_edge=False)
    for name in ("task", "method", "keep", "encoder", "select", "prefill", "decode"):
        table.add_column(name, justify="left" if name in ("task", "method") else "right", no_wrap=True)
    for row in rows:
        stages = (row.encode_s, row.select_s, row.prefill_s, row.decode_s)
        table.add_row(row.task, row.method, budget(row.keep), *(milliseconds(stage) for stage in stages))
    return table


def attacks(rows: Sequence[Attacked], title: str) -> Table:
    """Return what perturbed pictures do: the share of kept tokens that stay kept, and the share of right answers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "method", "keep", "kept the same\nnoise", "\nattack", "right\nclean", "\nnoise", "\nattack"):
        table.add_column(name, justify="left" if name in ("task", "method") else "right", no_wrap=True)
    table.add_column("untouched\nclean", justify="right")
    table.add_column("\nattack", justify="right")
    table.add_column("made against")
    for row in rows:
        values = (row.overlap_noise, row.overlap, row.quality, row.quality_noise, row.quality_attacked)
        cells = [f"{value:.2f}" for value in (*values, row.untouched, row.untouched_attacked)]
        table.add_row(row.task, row.method, budget(row.keep), *cells, "another" if row.transfer else "itself")
    return table


def losing(found: Sequence[Loser]) -> list[str]:
    """Return a line for each method that chance equals or beats somewhere."""
    where: dict[str, list[str]] = {}
    for one in found:
        said = f"{one.task} at {budget(one.keep)} ({one.quality:.2f}, random {one.chance:.2f})"
        where.setdefault(one.method, []).append(said)
    return [f"no better than random: {method} on {', '.join(places)}" for method, places in where.items()]


def refusals(found: Sequence[Refusal]) -> list[str]:
    """Return a line for each thing that did not run."""
    lines = [
        f"{'failed' if one.failed else 'refused'}: {one.method} on {one.task}: {' '.join(one.reason.split())}"
        for one in found
    ]
    return list(dict.fromkeys(lines))


def budget(keep: Keep | None) -> str:
    """Return a budget as it was given."""
    return "-" if keep is None else f"{keep:g}" if isinstance(keep, float) else str(keep)


def share(part: float | None, whole: float | None) -> str:
    """Return ``part/whole`` in whole tokens."""
    return "-" if part is None or whole is None else f"{part:.0f}/{whole:.0f}"


def amount(value: float | None, unit: str = "") -> str:
    """Return a number in thousands, millions and so on."""
    if value is None:
        return "-"
    size = 0
    while value >= 1000 and size < len(UNITS) - 1:
        value, size = value / 1000, size + 1
    return f"{value:.3g} {UNITS[size]}{unit}".strip()


def milliseconds(seconds: float | None) -> str:
    """Return seconds in thousandths."""
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def ratio(value: float | None) -> str:
    """Return a ratio to the untouched model."""
    return "-" if value is None else f"{value:.2f}x"
