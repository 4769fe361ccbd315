"""Benchmark rows as Markdown: a summary for people in a hurry, and every row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]
Figures = dict[str, Any]

NONE_YET = "No figures yet: run `python docs/build.py --bench`."
WORSE = "†"
HEADLINE = (
    "snapkv", "adakv", "pyramidkv", "h2o", "tova", "streaming-llm", "expected-attention", "kvzip", "quest",
    "tidaldecode", "tokenselect", "infllm", "gemfilter", "promptdistill", "xl3m", "kivi",
)  # fmt: skip
"""The methods for text that the summary shows; the others stand with all rows."""
PICTURES = (
    "fastervlm", "hiprune", "divprune", "visionzip", "dymu", "aim", "vflowopt", "fastv", "pyramiddrop", "transprune",
    "random-patches", "uniform-patches", "downsample",
)  # fmt: skip
"""Those for pictures."""
BASELINES = ("random", "recency", "uniform", "untouched")
LEFT_OUT = (
    "lm", "ocr", "counting", "grounding", "many-images", "video", "niah-single", "niah-multikey", "niah-multiquery",
    "variable-tracking", "multiple-needles", "threading",
)  # fmt: skip
"""The tasks that stand with all rows alone."""


def summary(figures: Figures) -> str:
    """Return one table a run: quality at each budget, and what the smallest budget costs."""
    parts: list[str] = []
    for run in figures["runs"]:
        for rows in groups(run["rows"]):
            if rows[0]["task"] not in LEFT_OUT:
                parts += ["", *heading(rows), "", *table([row for row in rows if headline(row)])]
    if not parts:
        return NONE_YET
    return "\n".join([*parts[1:], "", f"Measured with {figures['on']}."])


def everything(figures: Figures) -> str:
    """Return every row, and what was refused."""
    if not figures["runs"]:
        return NONE_YET
    quality = ("method", "keep", "quality", "difference, 95%")
    names = (*quality, "tokens", "KV bytes", "allocated", "FLOPs", "prefill", "decode", "saving")
    parts: list[str] = []
    for run in figures["runs"]:
        for rows in groups(run["rows"]):
            parts += ["", *heading(rows), "", *head(names)]
            parts += [line(cells(row)) for row in rows]
        parts += ["", "```sh", run["command"], "```"]
        refused = dict.fromkeys(f"`{one['method']}` on {one['task']}: {one['reason']}" for one in run["refused"])
        parts += [f"\n- {reason}" for reason in refused]
    return "\n".join([*parts[1:], "", f"Measured with {figures['on']}."])


def losing(figures: Figures) -> str:
    """Return what random choice equals or beats at the same budget: a line for each method and task."""
    from tithe.bench import losers

    where: dict[tuple[str, str, str], list[str]] = {}
    for run in figures["runs"]:
        for one in losers(run["rows"]):
            asked = f"{one.task}, {one.question}" if one.question else one.task
            said = f"{one.keep:g} ({number(one.quality)} against {number(one.chance)})"
            where.setdefault((one.method, one.model, asked), []).append(said)
    if not where:
        return "None." if figures["runs"] else NONE_YET
    lines = head(("method", "model", "task", "keep (its quality against that of random)"))
    lines += [line((f"`{method}`", model, task, "; ".join(at))) for (method, model, task), at in where.items()]
    return "\n".join(lines)


def stages(figures: Figures, keep: float = 0.22) -> str:
    """Return where the time goes at one budget, in milliseconds, on every task with pictures."""
    parts = head(("model", "task", "method", "encoder", "select", "prefill", "decode"))
    for run in figures["runs"]:
        for row in run["rows"]:
            if row.get("encode_s") is None or row["keep"] not in (None, keep) or row["decode_s"] is None:
                continue
            spent = [row[name] for name in ("encode_s", "select_s", "prefill_s", "decode_s")]
            told = ["" if one is None else f"{1000 * one:.1f}" for one in spent]
            parts.append(line((row["model"], row["task"], f"`{row['method']}`", *told)))
    return "\n".join(parts) if len(parts) > 2 else NONE_YET


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each model, task and place of the question."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["task"], row["question"]), []).append(row)
    yield from found.values()


def heading(rows: list[Row]) -> list[str]:
    """Return what the rows of a group have in common."""
    first = rows[0]
    asked = {"inside": ", question inside the prompt", "after": ", question asked after compression", None: ""}
    return [
        f"**{first['model']}, task `{first['task']}`{asked[first['question']]}.** Untouched: "
        f"{number(first['quality_full'])}; {first['n']} cases, seed {first['seed']}."
    ]


def table(rows: list[Row]) -> list[str]:
    """Return a table of a group: one line a method, baselines last."""
    keeps = sorted({row["keep"] for row in rows if row["keep"] is not None}, reverse=True)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "untouched"))
    at = {(row["method"], row["keep"]): row for row in rows}
    chance = {row["keep"]: row["quality"] for row in rows if is_random(row)}
    smallest = keeps[-1] if keeps else None
    names = ("method", *(f"keep {keep:g}" for keep in keeps), "KV bytes", "FLOPs", "prefill", "decode", "saving")
    lines = head(names)
    for method in methods:
        own = at.get((method, None))
        shown = [own if own is not None and keep == smallest else at.get((method, keep)) for keep in keeps]
        qualities = [quality(row, chance.get(keep)) for row, keep in zip(shown, keeps, strict=True)]
        costs = own or at.get((method, smallest))
        if costs is None:
            continue
        lines.append(
            line(
                (
                    f"`{method}`" + (", own budget" if own is not None else ""),
                    *qualities,
                    part(costs["kv_bytes"], costs["kv_bytes_full"]),
                    part(costs["flops"], costs["flops_full"]),
                    ratio(costs["prefill_ratio"]),
                    ratio(costs["decode_ratio"]),
                    costs["saving"],
                )
            )
        )
    return lines


def headline(row: Row) -> bool:
    """Whether the summary has room for a row: some methods, without their variants, on one task of each kind."""
    slug, *own = str(row["method"]).split(":")
    plain = not any(name in part for part in own for name in ("page=", "share=", "ragged=", "profile=", "hedge="))
    known = HEADLINE if row["task"] == "multikey" else PICTURES if row["task"] == "vqa" else None
    return (plain and (known is None or slug in known)) or slug in BASELINES


def is_random(row: Row) -> bool:
    """Whether a row is a baseline of chance."""
    return str(row["method"]).split("-")[0] == "random"


def quality(row: Row | None, chance: float | None) -> str:
    """Return a quality, marked where chance does as well at the same budget."""
    if row is None:
        return ""
    worse = chance is not None and row["keep"] is not None and not is_random(row) and row["quality"] <= chance
    return number(row["quality"]) + (f" {WORSE}" if worse else "")


def cells(row: Row) -> tuple[str, ...]:
    """Return all of a row."""
    return (
        f"`{row['method']}`",
        "" if row["keep"] is None else f"{row['keep']:g}",
        number(row["quality"]),
        difference(row),
        "" if row["kept_tokens"] is None else f"{row['kept_tokens']:.0f} of {row['total_tokens']:.0f}",
        amount(row["kv_bytes"]),
        amount(row["kv_allocated"]),
        amount(row["flops"]),
        ratio(row["prefill_ratio"]),
        ratio(row["decode_ratio"]),
        row["saving"],
    )


def difference(row: Row) -> str:
    """Return the interval of the paired difference to the untouched model; empty where the run told none."""
    low, high = row.get("low"), row.get("high")
    if low is None or high is None or row["method"] == "untouched":
        return ""
    return f"{low:+.2f} to {high:+.2f}" + (" ?" if row["verdict"] == "too few" else "")


def head(names: Iterable[str]) -> list[str]:
    """Return the head of a table: the first column left, the others right."""
    names = list(names)
    return [line(names), line(["---", *("---:" for _ in names[1:])])]


def line(entries: Iterable[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(entries)} |"


def number(value: float) -> str:
    """Return a quality."""
    return f"{value:.2f}"


def ratio(value: float | None) -> str:
    """Return a ratio to the untouched model."""
    return "" if value is None else f"{value:.2f}x"


def part(value: float | None, whole: float | None) -> str:
    """Return a share of the untouched model's."""
    return "" if not value or not whole else f"{value / whole:.0%}"


def amount(value: float | None) -> str:
    """Return a whole number with its thousands apart."""
    return "" if not value else f"{value:,.0f}"
