"""Tables of benchmark rows, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from tithe.bench import Loser, Refusal, Row
    from tithe.bench.attack import Attacked
    from tithe.bench.compare import Comparison
    from tithe.budget import Keep
    from tithe.pick import Picked

BESIDE = 6
UNITS = ("", "k", "M", "G", "T", "P")


def results(rows: Sequence[Row], title: str) -> Table:
    """Return one table for rows of one model: qualities side by side by task, or a line for each of many tasks."""
    asked = list(dict.fromkeys((row.task, row.question, row.length) for row in rows))
    if len(asked) > BESIDE:
        return _listed(rows, title)
    longer = {task for task, _, length in asked if len({other[2] for other in asked if other[0] == task}) > 1}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("method", "keep", "tokens", "KV bytes", "FLOPs", "prefill", "decode"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for task, question, length in asked:
        lines = (task, question, str(length) if task in longer else None)
        table.add_column("\n".join(filter(None, lines)), justify="right", no_wrap=True)
    table.add_column("saving")
    runs: dict[tuple[str, Keep | None], dict[tuple[str, str | None, int | None], Row]] = {}
    for row in rows:
        runs.setdefault((row.method, row.keep), {})[row.task, row.question, row.length] = row
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


def _listed(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "length", "method", "keep", "quality", "tokens", "KV bytes", "FLOPs", "prefill", "decode"):
        table.add_column(name, justify="left" if name in ("task", "method") else "right", no_wrap=True)
    table.add_column("saving")
    for row in rows:
        table.add_row(
            row.task,
            "-" if row.length is None else str(row.length),
            row.method,
            budget(row.keep),
            f"{row.quality:.2f}",
            share(row.kept_tokens, row.total_tokens),
            amount(row.kv_bytes, "B"),
            amount(row.flops),
            ratio(row.prefill_ratio),
            ratio(row.decode_ratio),
            row.saving,
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


def differences(rows: Sequence[Row]) -> Table | None:
    """Return what beside speed changes against the untouched model, or None where there is nothing else."""
    extras = list(dict.fromkeys(name for row in rows for name in row.extras))
    mine = [row for row in rows if extras or row.method != "untouched"]
    if all(row.method == "untouched" for row in rows):
        return None
    longer = len({row.length for row in rows if row.length is not None}) > 1
    table = Table(title="against the untouched model", title_justify="left", box=None, pad_edge=False)
    for name in ("task", *["length"] * longer, "method", "keep"):
        table.add_column(name, justify="left" if name in ("task", "method") else "right", no_wrap=True)
    for name in ("difference", "95% interval", "says", "same answers", "KL", *extras):
        table.add_column(name, justify="left" if name == "says" else "right", no_wrap=True)
    for row in mine:
        table.add_row(
            row.task,
            *["-" if row.length is None else str(row.length)] * longer,
            row.method,
            budget(row.keep),
            f"{row.quality - row.quality_full:+.3f}",
            "-" if row.low is None or row.high is None else f"{row.low:+.3f} to {row.high:+.3f}",
            says(row.verdict, row.n, row.needed),
            "-" if row.agreement is None else f"{row.agreement:.2f}",
            "-" if row.kl is None else f"{row.kl:.3f}",
            *("-" if name not in row.extras else f"{row.extras[name]:.3f}" for name in extras),
        )
    return table


def limits(rows: Sequence[Row]) -> Table | None:
    """Return how long a context each method can serve, or None where tasks scored in shares have one length only."""
    from tithe.bench.limits import of_rows

    lengths: dict[tuple[str, str, Keep | None], set[int]] = {}
    for row in rows:
        if row.length is not None and 0 <= row.quality <= 1 and row.quality_full > 0:
            lengths.setdefault((row.task, row.method, row.keep), set()).add(row.length)
    several = [row for row in rows if len(lengths.get((row.task, row.method, row.keep), ())) > 1]
    if not several:
        return None
    found = of_rows([row.to_dict() for row in several])
    threshold = next(iter(found.values())).threshold
    title = f"effective context: tokens up to which the score stays at {threshold:g} or above"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("task", "method", "keep", "tokens"):
        table.add_column(name, justify="left" if name in ("task", "method") else "right", no_wrap=True)
    for (_, task, method, keep, _), limit in found.items():
        told = f"{limit.tokens:,.0f}" if limit.reached else f"{limit.tokens:,.0f} or more"
        table.add_row(str(task), str(method), budget(keep), told)  # type: ignore[arg-type]
    return table


def says(verdict: str, n: int, needed: int | None) -> str:
    """Return a verdict in words; one that cannot be given says how many cases it would take."""
    if verdict != "too few":
        return verdict
    return f"n = {n} too small to tell" + (f", about {needed:,} would" if needed is not None else "")


def fronts(found: Picked) -> Table:
    """Return what no other trial beats in both drop and cost, cheapest first."""
    from tithe.pick.constraints import COSTS, cost, drop

    title = f"what nothing else beats, of {len(found.trials)} trials ({found.constraints})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "method", "keep", COSTS[found.cost], "drop", "95% interval", "cases"):
        table.add_column(name, justify="left" if name in ("", "method") else "right", no_wrap=True)
    for one in found.front:
        row, given = one.row, found.runner_up
        mark = "winner" if one.candidate == found.winner.candidate else ""
        table.add_row(
            mark or ("runner-up" if given is not None and one.candidate == given.candidate else ""),
            one.candidate.label,
            budget(one.candidate.keep),
            f"{cost(row, found.cost):.3f}",
            f"{drop(row):+.3f}",
            "-" if row.low is None or row.high is None else f"{0 - row.high:+.3f} to {0 - row.low:+.3f}",
            str(row.n),
        )
    return table


def changes(found: Comparison, first: str, second: str) -> Table:
    """Return what changes from one run to another."""
    table = Table(title=f"{first} -> {second}", title_justify="left", box=None, pad_edge=False)
    for name in ("task", "question", "length", "method", "keep", "first", "second", "difference", "95% interval"):
        table.add_column(name, justify="left" if name in ("task", "question", "method") else "right", no_wrap=True)
    table.add_column("says", no_wrap=True)
    table.add_column("same answers", justify="right")
    for one in found.changes:
        same = (one.first, one.first_keep) == (one.second, one.second_keep)
        table.add_row(
            one.task,
            one.question or "-",
            "-" if one.length is None else str(one.length),
            one.first if same else f"{one.first} -> {one.second}",
            budget(one.first_keep) if same else f"{budget(one.first_keep)} -> {budget(one.second_keep)}",
            f"{one.quality_first:.3f}",
            f"{one.quality_second:.3f}",
            f"{one.difference:+.3f}",
            "-" if one.low is None or one.high is None else f"{one.low:+.3f} to {one.high:+.3f}",
            says(one.verdict, one.n, one.needed),
            "-" if one.agreement is None else f"{one.agreement:.2f}",
        )
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
