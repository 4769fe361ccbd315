from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page.browser import Opened

from tithe.page import Report, render

pytestmark = pytest.mark.slow

Visit = Callable[..., Opened]

FOCUSABLE = "a[href], button, select, input, summary, [tabindex]:not([tabindex='-1'])"
NAME = """(() => {
  const label = node.labels?.[0]?.textContent ?? '';
  const by = node.getAttribute('aria-labelledby');
  const named = by && document.getElementById(by).textContent;
  return (node.getAttribute('aria-label') || named || label || node.textContent).trim();
})()"""


def test_everything_is_reached_by_keys_and_seen_to_be(report: Report, picked_report: Report, visit: Visit) -> None:
    """Tab goes once through all that can be used, each with a name and a visible focus, and groups are one stop."""
    for one in (report, replace(picked_report, rows=picked_report.rows[:8])):
        page = visit(one)
        reached: list[str] = []
        while len(reached) < 400:
            page.press("Tab")
            if page.active("node === document.body"):
                break
            kind, name, outline = page.active(
                "[node.tagName + '.' + (node.name ?? '') + (node.dataset.fill ?? ''), "
                + NAME
                + ", getComputedStyle(node).outlineStyle]"
            )
            assert name, kind
            assert outline != "none", (kind, name)
            reached.append(kind)
        assert len(reached) < 400
        links = page.one("tbody a, .heat a").count()
        stops = page.one(FOCUSABLE).evaluate_all(
            "nodes => nodes.filter(node => node.tabIndex >= 0 && !node.disabled && node.checkVisibility()).length"
        )
        assert abs(len(reached) - stops) <= 1
        assert len(reached) - links < 75
        for wanted in ("SELECT.goal", "SELECT.cost", "DIV.plot", "INPUT.words", "BUTTON."):
            assert wanted in reached
    assert "PRE.recipe" in reached


def test_names_of_everything_that_can_be_used(report: Report, picked_report: Report, visit: Visit) -> None:
    for one in (report, picked_report):
        page = visit(one)
        names = page.each(FOCUSABLE, f"[node.outerHTML.slice(0, 90), {NAME}]")
        assert [html for html, name in names if not name] == []
        assert page.one("svg:not([aria-hidden]):not([aria-label])").evaluate_all(
            "nodes => nodes.filter(node => !node.closest('[aria-hidden=true]')).length"
        ) == 0  # fmt: skip


def luminance(colour: list[float]) -> float:
    parts = [part / 255 for part in colour[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Opened, selector: str) -> float:
    """The ratio of a text's colour to that of the page."""
    drawn = """node => [getComputedStyle(node).color, getComputedStyle(document.body).backgroundColor].map((colour) => {
      const context = new OffscreenCanvas(1, 1).getContext('2d');
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data];
    })"""
    lights = sorted(luminance(colour) for colour in page.one(selector).first.evaluate(drawn))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def test_both_themes_are_readable_and_can_be_chosen(report: Report, picked_report: Report, visit: Visit) -> None:
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 23, 26)")):
        page = visit(picked_report, color_scheme=scheme)
        look = "getComputedStyle(document.body).backgroundColor"
        assert page.page.evaluate(look) == paper
        for selector in (
            ".lead",
            "#results td",
            "#results small",
            ".judged.worse",
            "#results tbody a",
            ".card dt",
            ".key",
        ):
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        toggle = page.one("#theme")
        seen = []
        for _ in range(3):
            toggle.click()
            seen.append((str(toggle.text_content()), page.page.evaluate(look)))
        light, dark = ("Theme: light", "rgb(255, 255, 255)"), ("Theme: dark", "rgb(21, 23, 26)")
        assert seen == [light, dark, ("Theme: auto", paper)]
        page = visit(report, "text.budget=25 %&text.layer=0", color_scheme=scheme)
        assert contrast(page, ".tokens .dropped") >= 4.5, scheme


def test_a_phone_shows_it_all_without_scrolling_sideways(report: Report, picked_report: Report, visit: Visit) -> None:
    for one, address in ((report, "text.beside=snapkv&picture.beside=snapkv"), (picked_report, "")):
        page = visit(one, address, size=(390, 844))
        assert page.page.evaluate("document.documentElement.scrollWidth") == 390
        wide = page.each(
            "main *",
            "node.checkVisibility() && !node.closest('.scroll, pre, svg, .unseen')"
            " && node.getBoundingClientRect().right > 391 ? node.outerHTML.slice(0, 80) : null",
        )
        assert [html for html in wide if html] == []
        small = page.each(
            "main select, main input:not([type=checkbox]), main .legend button, .differences button",
            "node.checkVisibility() && node.getBoundingClientRect().height < 24 ? node.outerHTML.slice(0, 80) : null",
        )
        assert [html for html in small if html] == []
    page.one("#results .chooser summary").click()
    box = page.one("#results .chooser fieldset").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_paper_holds_all_that_matters_on_white(
    report: Report, picked_report: Report, visit: Visit, tmp_path: Path
) -> None:
    for one in (report, picked_report):
        page = visit(one, color_scheme="dark")
        page.page.emulate_media(media="print")
        assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        for gone in (".masthead", "form.controls", ".chooser", ".differences button", ".recipe button"):
            assert page.one(gone).evaluate_all("nodes => nodes.filter(node => node.checkVisibility()).length") == 0, (
                gone
            )
        for stays in ("#quality .plot svg", "#results tbody tr:last-child", "#methods .card"):
            assert page.one(stays).last.is_visible(), stays
        page.page.set_viewport_size({"width": 1040, "height": 800})
        wide = page.each("#results tbody tr:first-child > *", "node.getBoundingClientRect().right")
        assert max(wide) <= 1040, "the last column is not cut off"
        page.page.emulate_media(media="screen")
        pdf = page.page.pdf(path=str(tmp_path / "page.pdf"), prefer_css_page_size=True)
        assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2


def test_a_thousand_rows_of_thirty_columns_are_small_and_quick(
    make_row: Callable[..., dict[str, Any]], visit: Visit
) -> None:
    def one(at: int) -> dict[str, Any]:
        further = {f"figure_{name}": (at * 7919 % 997) / 997 for name in range(14)}
        return make_row(
            method=f"method-{at % 40}", task=f"task-{at // 200}", keep=(0.5, 0.25, 0.1, 0.05, 0.025)[at // 40 % 5],
            quality=at / 999, quality_full=1 - at / 1e5, quality_low=at / 1200, quality_high=min(1, at / 900),
            low=-0.01, high=0.02 + at / 1e4, verdict=("too few", "worse")[at % 2], agreement=at / 1000, kl=at / 3000,
            length=256 + at % 3, seed=at % 5, n=at, kv_bytes_full=4096 + at, kv_allocated=1000 + at,
            kept_tokens=at % 512 + 1, flops=10**9 + at, prefill_ratio=1 + at / 1e4, decode_ratio=0.7 + at / 1e4,
            by_depth=[[depth / 10, at / 999, 10] for depth in range(11)], extras=further,
        )  # fmt: skip

    report = Report("t", "c", "v", rows=tuple(one(at) for at in range(1000)))
    assert len(render(report).encode()) < 3_000_000
    started = time.perf_counter()
    page = visit(report)
    opening = time.perf_counter() - started
    assert page.page.evaluate("performance.getEntriesByType('navigation')[0].duration") < 15_000
    assert page.one("#results tbody tr").count() == 1000
    page.one("#results .chooser input:not(:disabled)").evaluate_all(
        "all => all.forEach(one => one.checked || one.click())"
    )
    page.one("#results thead th[data-column=allocated]").wait_for()
    assert page.one("#results thead th").count() >= 28
    started = time.perf_counter()
    page.one("#results thead th[data-column=quality] button").click()
    page.one("#results input[name=words]").fill("method-7")
    sorting = time.perf_counter() - started
    assert page.one("#results tbody tr").count() == 25
    assert opening < 20 and sorting < 10, f"opened in {opening:.1f} s, sorted and narrowed in {sorting:.1f} s"
