from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from page.browser import Opened

from tithe.page import ImageCase, LayerView, Report, TextCase, View

Visit = Callable[..., Opened]

TOKENS = "#text [data-fill=view] > span"
OTHER_TOKENS = "#text [data-fill=beside] > span"
PATCHES = "#picture [data-fill=kept] rect"


def plain(text: str) -> str:
    return text.replace("\ud800", "\ufffd")


def dropped(page: Opened) -> list[bool]:
    return page.each(TOKENS, "node.classList.contains('dropped')")


def test_the_scripts_draw_what_the_report_holds(report: Report, visit: Visit) -> None:
    page = visit(report, "text.method=snapkv&text.budget=25 %&text.layer=0&picture.budget=25 %&picture.layer=1")
    text, image, _ = report.cases
    assert isinstance(text, TextCase) and isinstance(image, ImageCase)
    scored = text.views[0].layers[0]
    assert page.each(TOKENS, "node.textContent") == [plain(token) for token in text.tokens]
    assert dropped(page) == [share == 0 for share in scored.kept]
    assert page.each(TOKENS, "node.classList.contains('partly')") == [0 < share < 1 for share in scored.kept]
    shades = [float(shade) for shade in page.each(TOKENS, "node.style.getPropertyValue('--shade')")]
    assert scored.scores is not None
    known = [(score, shade) for score, shade in zip(scored.scores, shades, strict=True) if not math.isnan(score)]
    assert [shade for _, shade in sorted(known)] == sorted(shade for _, shade in known)
    assert all(shade == 0 for score, shade in zip(scored.scores, shades, strict=True) if math.isnan(score))
    assert page.text("text", "answer") == text.views[0].answer
    assert page.text("text", "verdict") == "✓ right"
    kept = f"{sum(scored.kept):.0f} of {len(text.tokens)} tokens at layer 0"
    assert page.text("text", "status").startswith(f"snapkv at 25 % keeps {kept}")
    assert page.text("text", "missing") == ""
    assert page.text("picture", "missing").startswith("This method has no scores at layer 1")
    clear = [1 - float(veil) / 0.88 for veil in page.each(PATCHES, "node.getAttribute('fill-opacity')")]
    assert clear == pytest.approx(image.views[0].layers[1].kept, abs=0.01)
    assert page.one("#results tbody tr").count() == len(report.rows)
    assert page.text("results", "count") == f"{len(report.rows)} rows."


@pytest.mark.slow
def test_a_link_opens_another_view(report: Report, visit: Visit) -> None:
    page = visit(report, "text.method=snapkv%2Bkivi&text.budget=no+budget&text.layer=all")
    before, inside = (layer.kept for layer in report.cases[0].views[2].layers)
    share = [first * second for first, second in zip(before, inside, strict=True)]
    total = f"{sum(share):.1f}".removesuffix(".0")
    status = page.text("text", "status")
    assert status.startswith(
        f"snapkv+kivi at no budget keeps {total} of {len(share)} tokens on average over all layers"
    )
    assert page.text("text", "verdict") == "· not judged"
    assert dropped(page) == [kept == 0 for kept in share]


@pytest.mark.slow
def test_a_method_without_scores_is_shown_so(report: Report, visit: Visit) -> None:
    page = visit(report, "text.method=snapkv&text.budget=64 tokens&text.layer=3")
    kept = report.cases[0].views[1].layers[0].kept
    assert dropped(page) == [share == 0 for share in kept]
    assert page.text("text", "missing").startswith("This method has no scores at layer 3: nothing is shaded")
    assert set(page.each(TOKENS, "node.style.getPropertyValue('--shade')")) == {"0.000"}


@pytest.mark.slow
def test_every_layer_and_budget_can_be_reached(report: Report, visit: Visit) -> None:
    page = visit(report, "text.budget=25 %")
    assert page.each("#text select[name=layer] option", "node.textContent") == ["all layers", "layer 0", "layer 1"]
    for label, kept in (
        ("layer 0", report.cases[0].views[0].layers[0]),
        ("layer 1", report.cases[0].views[0].layers[1]),
    ):
        page.choose("text", "layer", label)
        assert dropped(page) == [share == 0 for share in kept.kept]
    slider = page.one('#text input[name="budget"]')
    assert slider.get_attribute("aria-valuetext") == "25 %"
    slider.focus()
    page.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == page.one('#text output[name="budget-label"]').text_content()
    assert page.text("text", "status").startswith("snapkv at 64 tokens keeps")
    assert page.text("text", "verdict") == "✗ wrong"
    page.press("Home")
    assert page.text("text", "status").startswith("snapkv at 25 % keeps")
    page.choose("text", "method", "snapkv+kivi")
    assert page.text("text", "status").startswith("snapkv+kivi at no budget keeps")
    assert slider.is_disabled()
    page.one("#text details.answers button").nth(1).click()
    assert page.text("text", "status").startswith("snapkv at 64 tokens keeps")
    page.press("ArrowLeft Enter")
    assert page.text("text", "status").startswith("snapkv at 25 % keeps")
    assert "text.budget=25+%25" in page.page.url


@pytest.mark.slow
def test_the_stages_of_a_mosaic_end_with_what_was_left(report: Report, visit: Visit) -> None:
    page = visit(report, "picture.case=1")
    mosaic = report.cases[2]
    assert isinstance(mosaic, ImageCase)
    last = mosaic.views[0].layers[-1]
    assert page.text("picture", "status") == (
        "tome at 50 % keeps 2 of 6 patches from layer 2 on (33.3 %); 3 are merged into others, 1 dropped."
    )
    stages = page.each("#picture [data-fill=stages] button", "[node.title, node.ariaPressed]")
    assert stages == [
        ["before the model: 5 kept, 0 merged, 1 dropped", "false"],
        ["from layer 2 on: 2 kept, 3 merged, 1 dropped", "true"],
    ]
    veils = [float(veil) for veil in page.each(PATCHES, "node.getAttribute('fill-opacity')")]
    assert last.into is not None
    states = zip(last.kept, last.into, strict=True)
    assert veils == [0 if kept else 0.88 if into == -1 else 0.5 for kept, into in states]
    assert "no patches (2)" in page.text("picture", "key")
    page.one("#picture [data-fill=stages] button").first.click()
    assert page.text("picture", "status").startswith("tome at 50 % keeps 5 of 6 patches before the model")


KEYS = [
    ("ArrowRight", 0, {0, 2, 4}, "kept, and 2 merged into it: crop 1, row 1, column 1; crop 2, row 1, column 1"),
    ("ArrowRight ArrowRight", 1, set(), "· kept"),
    ("ArrowRight ArrowRight ArrowRight ArrowRight", 4, {0, 2, 4}, "row 1, column 1, with 1 more"),
    ("ArrowRight ArrowRight ArrowRight ArrowRight ArrowDown", 5, set(), "· dropped"),
    ("a ArrowRight ArrowRight ArrowRight ArrowRight ArrowDown ArrowLeft", 3, set(), "a token that is no patch"),
    ("ArrowRight ArrowUp ArrowLeft", 0, {0, 2, 4}, "kept, and 2 merged"),
]


@pytest.mark.slow
def test_keys_show_what_was_merged_into_what(report: Report, visit: Visit) -> None:
    page = visit(report, "picture.case=1")
    for keys, at, family, words in KEYS:
        page.fill("picture", "view").focus()
        page.press(keys)
        classes = [set(names.split()) for names in page.each(PATCHES, "node.className.baseVal")]
        assert [place for place, names in enumerate(classes) if "active" in names] == [at]
        assert {place for place, names in enumerate(classes) if "related" in names} == family
        assert words in page.text("picture", "readout")
        page.press("Escape")
        assert page.one(f"{PATCHES}.active").count() == 0
        assert page.text("picture", "readout").startswith("Point at a patch")


FIRST = (1.0, 1.0, 0.0, 0.0, 0.5, 0.0, 1.0)
SECOND = (1.0, 0.0, 1.0, 0.0, 0.0, 0.25, 1.0)
FATES = ["both", "only", "lacks", "neither", "only", "lacks", "both"]
MIRRORED = ["both", "lacks", "only", "neither", "lacks", "only", "both"]


def two_views(n: int, second_layer: int = 0) -> tuple[View, ...]:
    first, second, all_of_it = FIRST[:n], SECOND[:n], (1.0,) * n
    return (
        View("left", 0.5, "yes", True, (LayerView(0, None, first), LayerView(1, None, all_of_it))),
        View("right", 0.25, "perhaps", False, (LayerView(0, None, all_of_it), LayerView(1, None, all_of_it))),
        View("right", 0.5, "no", False, (LayerView(second_layer, None, second), LayerView(9, None, all_of_it))),
    )


@pytest.mark.slow
def test_two_methods_stand_beside_each_other_with_what_differs(visit: Visit) -> None:
    case = TextCase("m", tuple("abcdefg"), "q", "yes", "yes", two_views(7))
    page = visit(Report("t", "c", "v", cases=(case,)), "text.layer=0")
    assert page.fill("text", "beside-figure").is_hidden()
    page.choose("text", "beside", "right")
    assert page.each(TOKENS, "node.dataset.fate") == FATES
    assert page.each(OTHER_TOKENS, "node.dataset.fate") == MIRRORED
    assert page.each(OTHER_TOKENS, "node.textContent") == list("abcdefg")
    tally = "2 of 7 tokens kept by both, 2 only by left, 2 only by right, 1 by neither."
    assert page.text("text", "tally") == tally
    assert page.text("text", "caption") == "Kept by left at 50 %, layer 0"
    assert page.text("text", "beside-caption") == "Kept by right at 50 %, layer 0"
    assert page.text("text", "beside-answer") == "right at 50 %no ✗ wrong"
    assert "at least one head" in page.text("text", "key")
    styles = page.each(
        TOKENS, "[getComputedStyle(node).textDecorationLine, getComputedStyle(node).textDecorationStyle]"
    )
    told = dict(zip(FATES, map(tuple, styles), strict=True))
    assert len(set(told.values())) == 4, "each fate is told by more than its colour"

    page.one("#text [data-way='1']").click()
    assert page.text("text", "readout").endswith('"b" · kept only by left')
    page.fill("text", "view").focus()
    page.press("n n p n")
    assert page.text("text", "readout").endswith('"e" · kept only by left')
    page.press("n n")
    assert page.text("text", "readout").endswith('"b" · kept only by left')
    assert page.each(f"{OTHER_TOKENS}.active", "node.textContent") == ["b"]
    page.fill("text", "beside").focus()
    page.press("ArrowRight")
    assert page.text("text", "readout").endswith('"c" · kept only by right')

    page.one('#text input[name="beside_budget"]').focus()
    page.press("ArrowLeft")
    assert page.text("text", "tally") == "4 of 7 tokens kept by both, 0 only by left, 3 only by right, 0 by neither."
    assert "beside=right" in page.page.url and "beside_budget=25+%25" in page.page.url
    page.choose("text", "beside", "left")
    page.one('#text select[name="beside"]').focus()
    assert page.text("text", "tally").startswith("4 of 7 tokens kept by both, 0 only by left at 50 %")
    page.choose("text", "beside", "no other")
    assert page.fill("text", "beside-figure").is_hidden()
    assert page.one(f"{TOKENS}[data-fate]").count() == 0
    assert "beside" not in page.page.url.split("#")[1]


@pytest.mark.slow
def test_pictures_beside_each_other_have_signs_where_they_differ(report: Report, visit: Visit) -> None:
    image = report.cases[1]
    assert isinstance(image, ImageCase)
    page = visit(Report("t", "c", "v", cases=(replace(image, views=two_views(6, 5)),)), "picture.layer=0")
    page.choose("picture", "beside", "right")
    assert page.text("picture", "tally") == (
        "3 of 6 patches kept by both, 0 only by left, 3 only by right, 0 by neither."
    )
    assert page.text("picture", "beside-caption") == "Kept by right at 50 %, all layers"
    assert page.fill("picture", "importance").is_hidden()
    page.choose("picture", "beside", "no other")
    assert page.fill("picture", "importance").is_visible()
    same = replace(image, views=two_views(6))
    page = visit(Report("t", "c", "v", cases=(same,)), "picture.layer=0&picture.beside=right")
    for side, fates in (("kept", FATES[:6]), ("beside", MIRRORED[:6])):
        for kind in ("only", "lacks"):
            (path,) = page.each(f"#picture [data-fill={side}] path.{kind}:not(.under)", "node.getAttribute('d')")
            strokes = path.count("M")
            assert strokes == fates.count(kind) * (2 if kind == "only" else 1), "a plus has two strokes, a minus one"
        veils = page.each(f"#picture [data-fill={side}] rect", "Number(node.getAttribute('fill-opacity'))")
        assert [veil == 0 for veil in veils] == [fate in ("both", "only") for fate in fates]


@pytest.mark.slow
def test_texts_beside_each_other_scroll_together(visit: Visit) -> None:
    tokens = tuple(f"line {at}\n" for at in range(200))
    first, second = ((View(name, 0.5, "a", None, (LayerView(0, None, (1.0,) * 200),))) for name in "ab")
    case = TextCase("m", tokens, "q", "e", "u", (first, second))
    page = visit(Report("t", "c", "v", cases=(case,)), "text.beside=b")
    page.fill("text", "view").evaluate("node => { node.scrollTop = 1500; }")
    page.page.wait_for_timeout(150)
    assert page.fill("text", "beside").evaluate("node => node.scrollTop") == pytest.approx(1500, abs=60)


def test_what_a_model_wrote_runs_nowhere(report: Report, picked_report: Report, visit: Visit) -> None:
    """The fixtures hold scripts in every text; a dialog, a request or an error would fail the visit when it ends."""
    for one in (report, picked_report):
        page = visit(one)
        assert page.one("script").count() == 3
        assert page.one("img, iframe, object, embed, link[href^=http]").count() == 0
        assert [url for url in page.requests if not url.startswith("data:")] == [page.home]
