"""What a notebook shows of results: small fragments of HTML that hold all they need and run nothing.

Each is a table or a line of tokens with a style of its own, in the colours of the notebook around it; whatever a model
read or wrote stays text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

from tithe.types import DEAD

if TYPE_CHECKING:
    from tithe.trace import Event, Report, Trace
    from tithe.types import Selection

SHOWN = 2000
"""Tokens at most in one fragment: a notebook keeps all of them in its file."""

TINT = "11,130,150"
BOX = "border-collapse:collapse;font-variant-numeric:tabular-nums;text-align:left"
CELL = "padding:.15em .7em;text-align:left"
NUMBER = "padding:.15em .7em;text-align:right"
SOFT = "opacity:.7"
DROPPED = "opacity:.6;text-decoration:line-through"
LINE = "line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere;max-height:24em;overflow:auto"
DASH = "\u2013"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def tokens(
    words: Sequence[str],
    scores: Sequence[float] | None = None,
    kept: Sequence[float] | None = None,
    title: str = "",
) -> str:
    """Return a text with its scores as background and what was dropped struck through.

    Args:
        words: the tokens, decoded, in their order.
        scores: one for each, on any scale, NaN for none; the background tells the rank, the title the number.
        kept: the share of heads that kept each one, 0..1; None: nothing was dropped.
        title: what stands above the text.

    Raises:
        ValueError: scores or kept of another length than the words.
    """
    for name, given in (("scores", scores), ("kept", kept)):
        if given is not None and len(given) != len(words):
            raise ValueError(f"{name}: {len(given)} given for {len(words)} tokens")
    ranks = _ranks(scores) if scores is not None else [0.0] * len(words)
    marks = []
    for at, word in enumerate(words[:SHOWN]):
        told = [f"token {at + 1}"]
        style = f"background:rgba({TINT},{0.55 * ranks[at] ** 3:.2f})"
        if scores is not None:
            told.append("no score" if math.isnan(scores[at]) else f"score {scores[at]:.4g}")
        if kept is not None:
            share = kept[at]
            told.append("kept" if share == 1 else "dropped" if share == 0 else f"kept by {share:.0%} of heads")
            style += f";{DROPPED}" if share == 0 else ";text-decoration:underline dotted" if share < 1 else ""
        marks.append(f'<span style="{style}" title="{escape(" · ".join(told))}">{escape(word)}</span>')
    more = f'<p style="{SOFT}">… and {len(words) - SHOWN:,} more</p>' if len(words) > SHOWN else ""
    head = [title] if title else []
    if kept is not None:
        head.append(f"{sum(kept):,.6g} of {len(words):,} tokens kept")
    return f'{_caption(" · ".join(head))}<div style="{LINE}">{"".join(marks)}</div>{more}'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return rows as a table: figures to the right, None as a dash."""
    lines = [list(row) for row in rows]
    right = [any(_is_figure(line[at]) for line in lines) for at in range(len(columns))]
    head = "".join(_cell("th", name, number) for name, number in zip(columns, right, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell('td', value, number) for value, number in zip(line, right, strict=True))}</tr>"
        for line in lines
    )
    return f'{_caption(caption)}<table style="{BOX}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def report(one: Report) -> str:
    """Return the figures of a run beside those of the untouched model."""
    rows: list[tuple[object, ...]] = []
    if one.kept_tokens is not None and one.total_tokens:
        rows.append(_beside("tokens kept", one.kept_tokens, one.total_tokens, "{:,.1f}".format))
    rows.append(_beside("KV bytes, live", one.kv_live, one.kv_full, _bytes))
    rows.append(_beside("KV bytes, allocated", one.kv_allocated, one.kv_full, _bytes))
    rows.append(_beside("FLOPs", one.flops, one.flops_full, "{:,}".format))
    if one.kv_host:
        rows.append(("bytes on the host", _bytes(one.kv_host), None, None))
    rows += [(name, None, None, f"{100 * share:.1f} %") for name, share in one.counts.items()]
    rows += [
        (f"time of {phase}", f"{1000 * seconds:.2f} ms", None, _forwards(one.forwards.get(phase, 0)))
        for phase, seconds in one.seconds.items()
    ]
    notes = "".join(f'<p style="{SOFT}">{escape(note)}</p>' for note in one.notes)
    caption = f"{' + '.join(one.methods) or 'untouched'} · {one.saving} saving"
    return table(("", "this run", "untouched", "share"), rows, caption) + notes


def trace(one: Trace) -> str:
    """Return what each step did at each layer: how many tokens it was given and how many it kept."""
    rows = [
        (
            event.method,
            event.step,
            event.point,
            "all" if event.layer is None else event.layer,
            event.phase,
            event.fired,
            _mean(event.seen),
            _mean(event.kept),
            _share(_mean(event.kept), _mean(event.seen)),
        )
        for event in one.events
    ]
    if not rows:
        return _caption("no step has fired yet")
    columns = ("method", "step", "at", "layer", "phase", "fired", "tokens", "kept", "share")
    return table(columns, rows, f"{len(rows)} steps at layers, as they last fired")


def event(one: Event, words: Sequence[str] | None = None) -> str:
    """Return one firing token by token, for its first row; ``words`` are those of the caller's whole sequence.

    Heads are put together: a token's score is their mean, and it is kept by the share of them that kept it.
    """
    where = f"{one.method}, step {one.step}" + ("" if one.layer is None else f", layer {one.layer}") + f", {one.phase}"
    if one.cols is None:
        kept, seen = _mean(one.kept), _mean(one.seen)
        return _caption(f"{where} · {kept:,.6g} of {seen:,.6g} tokens kept (run with level='scores' to see which)")
    return _marked(where, one.cols[0], one.scores, one.keep, words)


def selection(one: Selection, words: Sequence[str] | None = None) -> str:
    """Return what was decided for the first row, token by token; ``words`` as for an event."""
    return _marked("selection", one.cols[0], None, one.keep, words)


def _marked(title: str, held: Tensor, scores: Tensor | None, keep: Tensor | None, words: Sequence[str] | None) -> str:
    cols = _places(held)
    found = sorted(set().union(*cols) - {DEAD}) if words is None else list(range(len(words)))
    names = [f"{col} " for col in found] if words is None else list(words)
    at = {col: place for place, col in enumerate(found)}
    ranked = None if scores is None else _together(scores[0], cols, at, math.nan)
    kept = None if keep is None else _together(keep[0], cols, at, 0.0)
    return tokens(names, ranked, kept, title)


def _places(cols: Tensor) -> list[list[int]]:
    return [[int(col) for col in head] for head in cols.tolist()]


def _together(values: Tensor, cols: list[list[int]], at: dict[int, int], missing: float) -> list[float]:
    """The mean of each column over heads; shares of all heads for what is kept or not."""
    heads = values.tolist()
    sums, counts = [0.0] * len(at), [0] * len(at)
    for head, row in enumerate(heads):
        for col, value in zip(cols[head if len(cols) > 1 else 0], row, strict=True):
            if col in at and not math.isnan(value):
                sums[at[col]] += float(value)
                counts[at[col]] += 1
    if missing == 0.0:
        return [min(1.0, total / len(heads)) for total in sums]
    return [total / n if n else missing for total, n in zip(sums, counts, strict=True)]


def _ranks(scores: Sequence[float]) -> list[float]:
    order = sorted({score for score in scores if not math.isnan(score)})
    place = {score: at / max(1, len(order) - 1) for at, score in enumerate(order)}
    return [0.0 if math.isnan(score) else place[score] for score in scores]


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value[:1].isdigit())


def _cell(tag: str, value: object, number: bool) -> str:
    text = DASH if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
    return f'<{tag} style="{NUMBER if number else CELL}">{escape(text)}</{tag}>'


def _caption(text: str) -> str:
    return f'<p style="margin:.4em 0"><b>{escape(text)}</b></p>' if text else ""


def _beside(name: str, part: float, whole: float, show: object) -> tuple[object, ...]:
    assert callable(show)
    return name, show(part), show(whole), _share(part, whole)


def _forwards(count: int) -> str:
    return f"{count:,} forward{'' if count == 1 else 's'}"


def _share(part: float, whole: float) -> str | None:
    return f"{100 * part / whole:.1f} %" if whole else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _bytes(value: float) -> str:
    size = 0
    while value >= 1024 and size < len(UNITS) - 1:
        value, size = value / 1024, size + 1
    return f"{value:.4g} {UNITS[size]}"
