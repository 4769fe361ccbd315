"""Rows of results as the page takes them: what they may hold, how a budget reads, and how they become arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Scalar: TypeAlias = "str | int | float | bool | None"
Row: TypeAlias = Mapping[str, Any]

COLUMNS = (
    "model", "task", "question", "length", "method", "keep", "quality", "quality_low", "quality_high", "quality_full",
    "low", "high", "verdict", "agreement", "kl", "kept_tokens", "total_tokens", "kv_bytes", "kv_allocated",
    "kv_bytes_full", "flops", "flops_full", "prefill_ratio", "decode_ratio", "saving", "n", "seed",
)  # fmt: skip
NEEDED = ("model", "task", "method")
DEPTHS = "by_depth"
FURTHER = "extras"
DIGITS = 6


def checked(rows: Iterable[Row], what: str) -> tuple[dict[str, Any], ...]:
    """Return the rows with their `extras` beside the other columns.

    Raises:
        ValueError: what could not be drawn, by the place of the row and the name of the column.
    """
    return tuple(_flat(row, f"{what}[{at}]") for at, row in enumerate(rows))


def packed(rows: Sequence[Row]) -> dict[str, object]:
    """Return the rows as names of columns and an array a row, with the budget in words and as a share beside them."""
    extra = sorted({name for row in rows for name in row} - set(COLUMNS))
    names = (*COLUMNS, *extra)
    return {
        "columns": (*names, "keep_label", "keep_share"),
        "rows": [(*(_short(row.get(name)) for name in names), budget(row.get("keep")), _share(row)) for row in rows],
    }


def budget(keep: Scalar) -> str:
    """A budget in words: `12.5 %` of the tokens, `64 tokens`, or `no budget`."""
    if isinstance(keep, str):
        return keep
    if not isinstance(keep, int | float):
        return "no budget"
    if _is_count(keep):
        return f"{keep:,g} token{'' if keep == 1 else 's'}"
    return f"{100 * keep:.4g} %"


def _flat(row: Row, at: str) -> dict[str, Any]:
    further = row.get(FURTHER) or {}
    if not isinstance(further, Mapping):
        raise ValueError(f"{at}['{FURTHER}']: {type(further).__name__} is no mapping of names to numbers")
    twice = further.keys() & (row.keys() - {FURTHER})
    if twice:
        raise ValueError(f"{at}['{FURTHER}']: {', '.join(sorted(twice))} is a column of the row already")
    flat = {**{name: value for name, value in row.items() if name != FURTHER}, **further}
    missing = [name for name in NEEDED if not isinstance(flat.get(name), str)]
    if missing:
        raise ValueError(f"{at}: {', '.join(missing)} must be given as text")
    if isinstance(flat.get("keep"), str):
        raise ValueError(f"{at}['keep']: {flat['keep']!r} is text, not a number")
    for name, value in flat.items():
        if name == DEPTHS and value is not None:
            flat[name] = [_depth(one, f"{at}['{DEPTHS}']") for one in value]
        elif not (value is None or isinstance(value, str | int | float)):
            raise ValueError(f"{at}[{name!r}]: {type(value).__name__} is no plain text or number")
    return flat


def _depth(one: Sequence[float], at: str) -> tuple[float, float, float]:
    if len(one) != 3 or not all(isinstance(value, int | float) and math.isfinite(value) for value in one):
        raise ValueError(f"{at}: {one!r} is no depth, quality and number of cases")
    depth, quality, n = one
    if not 0 <= depth <= 1:
        raise ValueError(f"{at}: a depth of {depth} does not lie in 0..1")
    return depth, quality, n


def _is_count(keep: float) -> bool:
    return isinstance(keep, int) or keep > 1


def _share(row: Row) -> float | None:
    keep, total = _short(row.get("keep")), row.get("total_tokens")
    if not isinstance(keep, int | float):
        return None
    if not _is_count(keep):
        return keep
    return keep / total if isinstance(total, int | float) and total else None


def _short(value: Any) -> Any:
    """A number to as many digits as the page can show, and nothing for one that is none."""
    if isinstance(value, list):
        return [[_short(number) for number in one] for one in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
