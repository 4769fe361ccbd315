from __future__ import annotations

import ast
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tithe.page import CardRow, LayerView, Report, TextCase, View, render, write

ASSETS = [path for path in (files("tithe.page") / "assets").iterdir() if path.name.endswith((".js", ".css", ".j2"))]
RESOURCES = {"src", "srcset", "poster", "action", "formaction", "background", "xlink:href", "manifest", "ping"}
SINKS = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|fetch\(|XMLHttp|import\("
FRAMEWORKS = {"torch", "transformers", "numpy", "PIL", "jaxtyping"}

ReadPage = Callable[[str], Any]


def shown(text: str) -> str:
    return text.replace("\ud800", "\ufffd")


def test_hostile_text_stays_text(report: Report, read_page: ReadPage) -> None:
    page = read_page(render(report))
    assert page.texts("title") == page.texts("h1") == [shown(report.title)]
    assert page.texts("h3") == [card.slug for card in report.cards]
    assert report.cards[1].title in page.texts("p")
    assert report.cards[1].mechanism in page.texts("p")
    assert len(page.scripts) == 2
    assert not any("alert" in script for script in page.scripts)
    assert not [attrs for tag, attrs in page.tags if tag == "img"]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    text = report.cases[0]
    assert isinstance(text, TextCase)
    assert page.data["cases"][2]["pictures"][0]["name"] == report.cases[2].pictures[0].name  # type: ignore[union-attr]
    assert page.data["cases"][0]["tokens"] == [shown(token) for token in text.tokens]
    assert page.data["cases"][0]["views"][0]["answer"] == report.cases[0].views[0].answer


def test_nothing_is_loaded(report: Report, read_page: ReadPage) -> None:
    html = render(report)
    page = read_page(html)
    for tag, attrs in page.tags:
        assert not RESOURCES & set(attrs), (tag, attrs)
        href = attrs.get("href", "")
        if tag == "a":
            assert href.startswith(("#", "https://arxiv.org/abs/", "https://github.com/"))
        else:
            assert href in ("", "data:,")
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a" and "://" in attrs["href"]}
    assert links == {"https://arxiv.org/abs/2404.14469", "https://github.com/FasterDecoding/SnapKV"}
    assert html.count("://") == len(links)
    assert "@import" not in html
    assert "url(" not in html


def test_the_policy_lets_only_these_scripts_run(report: Report, read_page: ReadPage) -> None:
    page = read_page(render(report))
    (policy,) = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = [f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" for code in page.scripts]
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["script-src"].split() == digests
    (style,) = page.texts("style")
    assert rules["style-src"] == f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'"
    assert not [attrs for _, attrs in page.tags if "style" in attrs]


def test_every_reference_in_the_page_leads_somewhere(report: Report, read_page: ReadPage) -> None:
    page = read_page(render(report))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        if attrs.get("href", "").startswith("#"):
            assert unquote(attrs["href"][1:]) in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attrs or attrs[name] in ids
    assert {f"method-{card.slug}" for card in report.cards} <= set(ids)


def test_sections_without_content_are_left_out(card: CardRow, read_page: ReadPage) -> None:
    page = read_page(render(Report("t", "c", "v", cards=(card,))))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["methods"]
    assert any("no results and no cases" in text for text in page.texts("p"))


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_assets_can_stand_in_a_page_and_never_turn_text_into_code(asset: Path) -> None:
    source = asset.read_text(encoding="utf-8")
    assert not re.search(SINKS, source)
    if asset.name.endswith((".js", ".css")):
        assert "</" not in source
        assert "<!--" not in source
        assert "://" not in source
    else:
        assert "|safe" not in source


def test_the_room_imports_no_framework() -> None:
    room = Path(str(files("tithe.page")))
    names = set[str]()
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                names.add(node.module)
    ours = {name for name in names if name.startswith("tithe")}
    assert all(name.startswith("tithe.page") or name == "tithe.files" for name in ours)
    assert {name.split(".")[0] for name in names - ours}.isdisjoint(FRAMEWORKS)


def test_a_long_case_stays_small() -> None:
    n = 1000
    scores = tuple(1 / (1 + (37 * token) % n) for token in range(n))
    kept = tuple((token % 5) / 4 for token in range(n))
    layers = tuple(LayerView(layer, scores, kept) for layer in range(4))
    shown = tuple(
        View(f"method-{method}", keep, "an answer", True, layers)
        for method in range(6)
        for keep in (0.0625, 0.125, 0.25, 0.5)
    )
    case = TextCase("m", tuple(f" word{token}" for token in range(n)), "q", "e", "u", shown)
    assert len(render(Report("t", "c", "v", cases=(case,))).encode()) < 600_000


def test_a_thousand_rows_stay_small(make_row: Callable[..., dict[str, Any]]) -> None:
    rows = tuple(make_row(seed=seed, quality=seed / 999, flops=12345678901 + seed) for seed in range(1000))
    assert len(render(Report("t", "c", "v", rows=rows)).encode()) < 400_000


def test_write_gives_the_page_and_leaves_nothing_else(report: Report, tmp_path: Path) -> None:
    target = tmp_path / "tithe-report.html"
    target.write_text("old", encoding="utf-8")
    assert write(report, str(target)) == target
    assert target.read_bytes() == render(report).encode("utf-8")
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_fails_leaves_the_old_page(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: Path, target: Path) -> Path:
        raise OSError("no space")

    target = tmp_path / "tithe-report.html"
    target.write_text("old", encoding="utf-8")
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(report, target)
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
