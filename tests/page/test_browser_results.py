from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from page.browser import Opened

from tithe.page import Report

pytestmark = pytest.mark.slow

Visit = Callable[..., Opened]
Row = dict[str, Any]

MINUS = "\u2212"


def shown(page: Opened, section: str = "#results") -> list[list[str]]:
    """The texts of the table, row by row."""
    cells = f"{section} tbody tr"
    return page.each(cells, "[...node.children].map(cell => cell.textContent)")


def column(page: Opened, name: str, section: str = "#results") -> list[str]:
    at = page.each(f"{section} thead th", "node.textContent").index(name) + 1
    return page.each(f"{section} tbody tr > :nth-child({at})", "node.textContent")


def numbers(texts: list[str]) -> list[float]:
    found = [re.match(rf"[+{MINUS}]?[\d,.]+", text) for text in texts]
    return [float(one[0].replace(MINUS, "-").replace(",", "")) for one in found if one]


def own(report: Report, task: str = "multikey", length: int = 512) -> list[Row]:
    return [dict(row) for row in report.rows if row["task"] == task and row["length"] == length]


COSTS = {
    "budget asked for": lambda row: row["keep"],
    "tokens kept": lambda row: row["kept_tokens"] / row["total_tokens"],
    "KV bytes, live": lambda row: row["kv_bytes"] / row["kv_bytes_full"],
    "FLOPs": lambda row: row["flops"] / row["flops_full"],
    "prefill time": lambda row: row["prefill_ratio"],
    "decode time": lambda row: row["decode_ratio"],
}


def beaten(rows: list[Row], cost: Callable[[Row], float], goal: Callable[[Row], float]) -> set[tuple[str, str]]:
    """Those for which another costs no more and gives no less, and is better in one of the two."""
    found = set()
    for row in rows:
        for other in rows:
            less, more = cost(row) - cost(other), goal(other) - goal(row)
            if less >= -1e-9 and more >= -1e-9 and (less > 1e-9 or more > 1e-9):
                found.add((row["method"], f"{100 * row['keep']:g} %"))
    return found


def test_the_front_is_drawn_over_every_cost(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    rows = [row for row in own(picked_report) if row["method"] != "untouched"]
    goals = {
        "quality": lambda row: row["quality"],
        "difference to untouched": lambda row: row["quality"] - row["quality_full"],
    }
    of = "[node.parentNode.dataset.method, node.dataset.budget]"
    for label, goal in goals.items():
        page.choose("quality", "goal", label)
        for cost, price in COSTS.items():
            page.choose("quality", "cost", cost)
            pale = {tuple(pair) for pair in page.each("#quality .point.beaten", of)}
            assert pale == beaten(rows, price, goal), (label, cost)
            assert page.one("#quality .point").count() == len(rows)
            assert page.one("#quality path.front").count() == 1
            assert page.one("#quality .point .whisker").count() == len(rows)
    assert "95 % intervals" in page.text("quality", "chart-key")
    assert page.one("#quality .marker.simulated").count() > 0


def test_a_whisker_reaches_from_one_end_of_the_interval_to_the_other(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    grid = page.each("#quality .grid", "[node.lastChild.textContent, node.getAttribute('transform')]")
    lines = {float(text): float(place.split()[1].rstrip(")")) for text, place in grid}
    scale = (lines[1.0] - lines[0.0]) / 1.0
    ends = page.each(
        "#quality [data-method=snapkv] [data-budget='10 %'] .whisker",
        "node.getAttribute('d').match(/ ([\\d.]+)V([\\d.]+)/).slice(1)",
    )
    (row,) = [row for row in own(picked_report) if row["method"] == "snapkv" and row["keep"] == 0.1]
    found = [(float(place) - lines[0.0]) / scale for place in ends[0]]
    assert found == pytest.approx([row["quality_high"], row["quality_low"]], abs=0.002)


def test_the_chart_shows_the_choice_and_is_read_by_keys(picked_report: Report, visit: Visit) -> None:
    picked = picked_report.picked
    assert picked is not None
    page = visit(replace(picked_report, picked=replace(picked, cost="decode")))
    assert page.one("#picked .lead").first.text_content().split() == (
        ["The", "cheapest", "in", "time", "to", "write", "of", "what", "meets", "every", "demand."]
    )
    assert page.one("#quality select[name=cost]").input_value() == "decode"
    page.choose("quality", "cost", "budget asked for")
    assert page.one("#quality .choice.winner").text_content() == "picked: adakv"
    assert page.one("#quality .choice.runner").text_content() == "runner-up"
    readout = page.text("quality", "chart-readout")
    (winner,) = [row for row in own(picked_report) if row["method"] == "adakv" and row["keep"] == 0.25]
    low, high = winner["quality_low"], winner["quality_high"]
    quality = f"{winner['quality']:.3f} (95 % interval {low:.3f} to {high:.3f})"
    assert readout.startswith(f"adakv at 25 %: quality {quality} · difference {MINUS}")
    assert "too few to tell" in readout and readout.endswith("on the front")
    page.fill("quality", "plot").focus()
    page.press("ArrowDown")
    assert page.text("quality", "chart-readout").startswith("snapkv at 25 %")
    page.press("ArrowRight")
    assert page.text("quality", "chart-readout").startswith("snapkv at 50 %")
    page.press("Escape")
    assert page.text("quality", "chart-readout").startswith("Point at the chart")
    page.one("#quality [data-method=h2o] [data-budget='10 %'] .marker").hover()
    assert page.text("quality", "chart-readout").startswith("h2o at 10 %")

    legend = page.one("#quality .legend button")
    assert legend.evaluate_all("nodes => nodes.filter(node => node.tabIndex === 0).length") == 1
    page.one("#quality .legend button[data-method=adakv]").click()
    assert page.one("#quality .plot [data-method=adakv]").count() == 0
    assert page.one("#quality .choice.winner").count() == 0
    assert page.one("#quality .legend button[data-method=adakv]").get_attribute("aria-pressed") == "false"
    page.press("Enter")
    assert page.one("#quality .plot [data-method=adakv]").count() == 1
    before = page.active("node.dataset.method")
    page.press("ArrowDown")
    assert page.active("node.dataset.method") not in (before, None)

    assert page.each("#quality select[name=context] option", "node.textContent") == ["256 tokens", "512 tokens"]
    page.choose("quality", "context", "256 tokens")
    best = max(row["quality"] for row in own(picked_report, length=256) if row["keep"] == 0.1)
    page.fill("quality", "plot").focus()
    assert f"{best:.3f}" in page.text("quality", "legend")
    page.choose("quality", "group", "words")
    assert page.one("#quality .point").count() == 15


def test_every_column_sorts_both_ways(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    heads = page.each("#results thead th", "node.textContent")
    assert {
        "Method",
        "Quality",
        "Difference",
        "Verdict",
        "Tokens",
        "Prefill",
        "Agreement",
        "KL",
        "Hallucinated",
    } <= set(heads)
    for at, name in enumerate(heads):
        for direction in ("first", "second"):
            page.one("#results thead button").nth(at).evaluate("node => { node.focus(); node.click(); }")
            said = page.one("#results thead th").nth(at).get_attribute("aria-sort")
            texts = column(page, name)
            if page.one("#results thead th").nth(at).get_attribute("class") != "number":
                assert texts == sorted(texts, reverse=said == "descending"), (name, direction)
                continue
            values = numbers(texts)
            assert len(values) >= 60
            assert values == sorted(values, reverse=said == "descending"), (name, direction)
            assert page.one("#results thead [aria-sort]").count() == 1
    assert page.active("node.textContent") == heads[-1]
    page.press("Home")
    assert page.active("node.textContent") == "Method"
    page.press("ArrowRight Enter")
    assert page.one("#results thead [aria-sort]").text_content() == heads[1]


def test_rows_are_narrowed_by_words_and_by_choices(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    rows = picked_report.rows
    field = page.one("#results input[name=words]")
    field.fill("too few adakv")
    wanted = [row for row in rows if row["method"] == "adakv" and row["verdict"] == "too few"]
    assert page.text("results", "count") == f"{len(wanted)} of {len(rows)} rows."
    assert set(column(page, "Verdict")) == {"?too few to tell"}
    field.focus()
    page.press("Escape")
    assert page.text("results", "count") == f"{len(rows)} rows."
    for name, label, key, value in (
        ("verdict", "worse", "verdict", "worse"), ("task", "words", "task", "words"),
        ("length", "512 tokens", "length", 512), ("method", "knorm", "method", "knorm"),
    ):  # fmt: skip
        page.choose("results", name, label)
        wanted = [row for row in rows if row[key] == value]
        assert page.one("#results tbody tr").count() == len(wanted) < len(rows)
        page.choose("results", name, "all")
    assert "n 64" in page.text("results", "same")
    (first,) = [row for row in shown(page) if row[:2] == ["adakv", "25 %"]][:1]
    assert first[2].startswith("0.9") and " to 0.9" in first[2]
    picked = page.each("#results tr.picked", "[node.children[0].textContent, node.children[1].textContent]")
    assert set(map(tuple, picked)) == {("adakv", "25 %")}


def test_columns_are_chosen(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    before = page.each("#results thead th", "node.textContent")
    assert "KV allocated" not in before
    boxes = page.one("#results .chooser input").count()
    assert boxes > len(before)
    page.one("#results .chooser summary").focus()
    page.press("Enter")
    page.one("#results .chooser input[data-column=allocated]").check()
    page.one("#results .chooser input[data-column=kl]").uncheck()
    page.one("#results thead th[data-column=allocated]").wait_for()
    page.one("#results thead th[data-column=kl]").wait_for(state="detached")
    after = page.each("#results thead th", "node.textContent")
    assert set(after) - set(before) == {"KV allocated"} and set(before) - set(after) == {"KL"}
    assert page.one("#results .chooser input[data-column=method]").is_disabled()
    assert page.one("#results .chooser summary").text_content() == f"Columns: {len(after)} of {boxes}"
    page.press("Escape")
    assert page.one("#results .chooser fieldset").is_hidden()
    assert page.active("node.tagName") == "SUMMARY"
    assert len(column(page, "KV allocated")) == len(picked_report.rows)


def test_quality_by_depth_stands_in_its_place(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    page.choose("depth", "budget", "25 %")
    cells = page.each("#depth tbody tr", "[...node.children].map(cell => cell.textContent)")
    heads = page.each("#depth thead th", "node.textContent")
    assert heads == ["Method", "Length", "0 %", "50 %", "100 %"]
    rows = [row for row in picked_report.rows if row["task"] == "multikey" and row["keep"] in (0.25, None)]
    wanted = {(row["method"], row["length"]): [f"{one[1]:.2f}" for one in row["by_depth"]] for row in rows}
    method, found = "", {}
    for one in cells:
        method = one[0] if len(one) == 5 else method
        found[method, int(one[-4].replace(",", ""))] = one[-3:]
    assert found == wanted
    titles = page.each("#depth tbody td", "node.title")
    assert any(title.startswith("24 cases at depth 50.0 %") for title in titles)


def test_the_choice_is_told_and_its_recipe_can_be_copied(picked_report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    picked = picked_report.picked
    assert picked is not None
    assert page.one("#picked h2").text_content() == "Picked: adakv at 25 %"
    facts = dict(page.each("#picked .figures > div", "[node.children[0].textContent, node.children[1].textContent]"))
    assert facts["Quality"] == f"{picked.quality:.3f}"
    assert facts["Difference to the untouched model"].startswith(f"{MINUS}{picked.drop:.3f} 95\u00a0%: {MINUS}")
    assert facts["Runner-up"] == "snapkv at 25 %"
    assert page.each("#picked .demands li", "node.textContent") == list(picked.constraints)
    assert page.text("picked", "recipe") == picked.recipe
    page.fill("picked", "copy").click()
    page.page.wait_for_timeout(100)
    assert page.text("picked", "copied") == "Copied."
    field = page.one("#results input[name=words]")
    field.focus()
    page.page.keyboard.press("Control+V")
    assert re.sub(r"\s+", "", field.input_value()) == re.sub(r"\s+", "", picked.recipe)
    field.fill("")
    trials = shown(page, "#picked")
    assert len(trials) == len(picked.trials)
    page.one("#picked thead th[data-column=trial] button").click()
    assert numbers(column(page, "Trial", "#picked")) == sorted(range(1, len(trials) + 1), reverse=True)
    assert "Rung" in page.each("#picked thead th", "node.textContent")


def test_a_name_leads_to_its_card_and_the_card_back(picked_report: Report, report: Report, visit: Visit) -> None:
    page = visit(picked_report)
    page.one("#results tbody tr >> text=snapkv").first.click()
    card = page.one("#method-snapkv")
    assert page.page.url.endswith("#method-snapkv") and card.evaluate("node => node.matches(':target')")
    for words in ("SnapKV", "2024", "arXiv:2404.14469", "official", "real", "The last queries vote."):
        assert words in str(card.text_content())
    back = card.locator("[data-back] a")
    assert back.text_content() == "12 rows"
    back.click()
    page.page.wait_for_timeout(50)
    assert set(column(page, "Method")) == {"snapkv"}
    page = visit(report)
    page.one(
        "#method-snapkv [data-back] a",
    ).last.click()
    page.page.wait_for_timeout(50)
    assert page.text("picture", "status").startswith("snapkv at")
