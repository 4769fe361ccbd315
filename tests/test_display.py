from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
import torch
from tiny import TEXT

import tithe
from tithe import display
from tithe.types import DEAD, Selection

HOSTILE = "<img src=x onerror='alert(1)'>&</span><script>"


class Fragment(HTMLParser):
    """The tokens of a fragment with their attributes, the cells of its tables, and every tag there is."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.open: list[str] = []
        self.spans: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        named = dict(attrs)
        assert not [name for name in named if name.startswith("on")]
        if tag == "span":
            self.spans.append((named["style"] or "", named["title"] or "", ""))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "span":
            style, title, text = self.spans[-1]
            self.spans[-1] = (style, title, text + data)
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def shade(style: str) -> float:
    found = re.search(r"rgba\(11,130,150,([\d.]+)\)", style)
    assert found is not None
    return float(found[1])


def test_tokens_tell_their_scores_and_what_was_dropped() -> None:
    words = ("a", HOSTILE, "c", "d", "\n")
    scores = (0.1, 5.0, math.nan, 1.0, -3.0)
    kept = (1.0, 0.0, 0.5, 1.0, 0.0)
    shown = Fragment(display.tokens(words, scores, kept, "snapkv"))
    assert [text for _, _, text in shown.spans] == list(words)
    shades = [shade(style) for style, _, _ in shown.spans]
    order = sorted((score, at) for at, score in enumerate(scores) if not math.isnan(score))
    assert [shades[at] for _, at in order] == sorted(shades[at] for _, at in order)
    assert shades[1] == max(shades) > 0.5 and shades[2] == shades[4] == 0
    assert ["line-through" in style for style, _, _ in shown.spans] == [share == 0 for share in kept]
    assert ["dotted" in style for style, _, _ in shown.spans] == [0 < share < 1 for share in kept]
    assert [title for _, title, _ in shown.spans] == [
        "token 1 · score 0.1 · kept", "token 2 · score 5 · dropped", "token 3 · no score · kept by 50% of heads",
        "token 4 · score 1 · kept", "token 5 · score -3 · dropped",
    ]  # fmt: skip
    assert "2.5 of 5 tokens kept" in shown.text
    assert set(shown.tags) == {"p", "b", "div", "span"}


def test_a_fragment_stays_small_and_says_what_it_leaves_out() -> None:
    html = display.tokens(["word"] * 50_000, [float(at) for at in range(50_000)])
    assert len(html) < 400_000
    assert f"{50_000 - display.SHOWN:,} more" in html
    with pytest.raises(ValueError, match="scores: 1 given for 2 tokens"):
        display.tokens(["a", "b"], [1.0])


def test_a_table_aligns_numbers_and_escapes_text() -> None:
    shown = Fragment(display.table(("name", "n"), [(HOSTILE, 1234.5), ("b", None)], HOSTILE))
    assert shown.rows == [["name", "n"], [HOSTILE, "1,234.5"], ["b", "\u2013"]]
    assert HOSTILE in shown.text and "img" not in shown.tags and "script" not in shown.tags


@pytest.fixture(scope="module")
def run() -> tithe.Run:
    model = TEXT["llama"]()
    ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    with tithe.on(model, "snapkv", keep=0.25, window=4, level="scores") as run, torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    return run


def test_the_report_of_a_run_stands_beside_the_untouched_model(run: tithe.Run) -> None:
    found = run.report()
    shown = Fragment(display.report(found))
    cells = {row[0]: row[1:] for row in shown.rows}
    assert cells["tokens kept"][:2] == [f"{found.kept_tokens:,.1f}", f"{found.total_tokens:,.1f}"]
    assert cells["FLOPs"][:2] == [f"{found.flops:,}", f"{found.flops_full:,}"]
    assert cells["KV bytes, live"][2] == f"{100 * found.kv_live / found.kv_full:.1f} %"
    assert cells["time of prefill"][2] == "1 forward"
    assert "snapkv · real saving" in shown.text


def test_a_trace_lists_what_fired(run: tithe.Run) -> None:
    shown = Fragment(display.trace(run.trace))
    assert len(shown.rows) == 1 + len(run.trace.events)
    first = run.trace.events[0]
    assert shown.rows[1][0] == "snapkv" and shown.rows[1][3] == str(first.layer)
    assert shown.rows[1][7] == f"{first.kept[0]:g}"
    assert "no step has fired" in display.trace(tithe.Trace())


def test_an_event_shows_the_tokens_that_it_kept(run: tithe.Run) -> None:
    one = next(event for event in run.trace.events if event.keep is not None)
    words = [f"w{at} " for at in range(40)]
    shown = Fragment(display.event(one, words))
    assert one.keep is not None and one.cols is not None
    heads = one.keep.shape[1]
    share = [0.0] * 40
    for head in range(heads):
        for col, kept in zip(
            one.cols[0, min(head, one.cols.shape[1] - 1)].tolist(), one.keep[0, head].tolist(), strict=True
        ):
            share[col] += kept / heads
    assert 0 < sum(share) < 40
    assert ["line-through" in style for style, _, _ in shown.spans] == [one_share == 0 for one_share in share]
    assert f"{sum(share):,.6g} of 40 tokens kept" in shown.text
    assert "snapkv, step 0, layer" in shown.text
    assert [text for _, _, text in Fragment(display.event(one)).spans][:2] == ["0 ", "1 "]


def test_an_event_without_columns_says_how_to_get_them() -> None:
    model = TEXT["llama"]()
    ids = torch.arange(3, 33)[None]
    with tithe.on(model, "snapkv", keep=0.5, window=4) as run, torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert "level=&#x27;scores&#x27;" in display.event(run.trace.events[0])


def test_a_selection_shows_every_column_but_the_dead_ones() -> None:
    keep = torch.tensor([[[True, False, True, False]]])
    cols = torch.tensor([[[3, 5, 9, DEAD]]])
    shown = Fragment(display.selection(Selection(keep, cols)))
    assert [text for _, _, text in shown.spans] == ["3 ", "5 ", "9 "]
    assert ["line-through" in style for style, _, _ in shown.spans] == [False, True, False]
