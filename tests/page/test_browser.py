from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tithe.page import ImageCase, Report, TextCase, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip

PRESS = """<script>
const area = document.querySelector('#picture [data-fill="view"]');
for (const key of KEYS) area.dispatchEvent(new KeyboardEvent("keydown", { key }));
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page's scripts were not run"),
]


class Drawn(HTMLParser):
    """The page as its scripts left it: units (tokens and patches), named fields, rows of the table, state."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.spans: list[tuple[dict[str, str], list[str]]] = []
        self.rects: list[dict[str, str]] = []
        self.stages: list[tuple[str, bool]] = []
        self.fields: dict[str, list[str]] = {}
        self.root: dict[str, str] = {}
        self.scripts = self.body_rows = 0
        self._path: list[str] = []
        self._section = ""
        self._in_unit = False
        self._field: tuple[str, int] | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag == "html":
            self.root = named
        if tag == "section":
            self._section = named["id"]
        self.scripts += tag == "script"
        self.body_rows += tag == "tr" and self._section == "results" and "tbody" in self._path
        if "data-unit" in named:
            if tag == "span":
                self.spans.append((named, []))
                self._in_unit = True
            else:
                self.rects.append(named)
        if tag == "button" and self._section == "picture" and "title" in named and "class" not in named:
            self.stages.append((named["title"], named["aria-pressed"] == "true"))
        if tag not in {"meta", "link", "input", "img", "br"}:
            self._path.append(tag)
        name = named.get("data-fill") or named.get("id")
        if name and self._field is None and tag in {"p", "dd", "span", "title"}:
            self._field = (f"{self._section}.{name}", len(self._path))
            self.fields[self._field[0]] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._field and len(self._path) == self._field[1]:
            self._field = None
        self._path.pop()
        self._in_unit = False

    def handle_data(self, data: str) -> None:
        if self._in_unit:
            self.spans[-1][1].append(data)
        if self._field:
            self.fields[self._field[0]].append(data)

    def text(self, name: str) -> str:
        return "".join(self.fields[name])


@pytest.fixture
def draw(report: Report, tmp_path: Path) -> Callable[..., Drawn]:
    target = write(report, tmp_path / "tithe-report.html")

    def run(address: str, keys: str = "") -> Drawn:
        """Draw the page, after ``keys`` were pressed on its patches."""
        assert CHROMIUM is not None
        if keys:
            html = target.read_text(encoding="utf-8")
            policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)
            assert policy is not None
            press = PRESS.replace("KEYS", json.dumps(keys.split()))
            target.write_text(html.replace(policy[0], "").replace("</body>", f"{press}</body>"), encoding="utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [CHROMIUM, *QUIET, profile, "--dump-dom", f"{target.as_uri()}#{address}"]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return Drawn(done.stdout.decode("utf-8"))

    return run


def test_the_scripts_draw_what_the_report_holds(report: Report, draw: Callable[[str], Drawn]) -> None:
    page = draw("text.method=snapkv&text.budget=25 %&text.layer=0&picture.budget=25 %&picture.layer=1")
    assert page.root["data-ready"] == "true"
    assert page.scripts == 3
    text, image, _ = report.cases
    assert isinstance(text, TextCase)
    assert isinstance(image, ImageCase)

    (scored, _) = text.views[0].layers
    tokens = page.spans[: len(text.tokens)]
    assert ["".join(parts) for _, parts in tokens] == [token.replace("\ud800", "\ufffd") for token in text.tokens]
    classes = [attrs.get("class", "").split() for attrs, _ in tokens]
    assert ["dropped" in names for names in classes] == [share == 0 for share in scored.kept]
    assert ["partly" in names for names in classes] == [0 < share < 1 for share in scored.kept]
    shades = [float(attrs["style"].split("--shade:")[1].strip(" ;")) for attrs, _ in tokens]
    assert scored.scores is not None
    known = [(score, shade) for score, shade in zip(scored.scores, shades, strict=True) if not math.isnan(score)]
    assert [shade for _, shade in sorted(known)] == sorted(shade for _, shade in known)
    assert all(shade == 0 for score, shade in zip(scored.scores, shades, strict=True) if math.isnan(score))

    assert page.text("text.answer") == text.views[0].answer
    assert page.text("text.verdict") == "✓ right"
    kept = f"{sum(scored.kept):.0f} of {len(text.tokens)} tokens at layer 0"
    assert page.text("text.status").startswith(f"snapkv at 25 % keeps {kept}")
    assert page.text("text.missing") == ""
    assert page.text("picture.missing").startswith("This method has no scores at layer 1")
    clear = [1 - float(attrs["fill-opacity"]) / 0.88 for attrs in page.rects[:6]]
    assert clear == pytest.approx(image.views[0].layers[1].kept, abs=0.01)
    assert page.body_rows == len(report.rows)
    assert page.text("results.count") == f"{len(report.rows)} rows."


def test_a_link_opens_another_view(report: Report, draw: Callable[[str], Drawn]) -> None:
    page = draw("text.method=snapkv%2Bkivi&text.budget=no+budget&text.layer=all")
    text = report.cases[0]
    before, inside = (layer.kept for layer in text.views[2].layers)
    share = [first * second for first, second in zip(before, inside, strict=True)]
    total = f"{sum(share):.1f}".removesuffix(".0")
    kept = f"{total} of {len(share)} tokens on average over all layers"
    assert page.text("text.status").startswith(f"snapkv+kivi at no budget keeps {kept}")
    assert page.text("text.verdict") == "· not judged"
    dropped = ["dropped" in attrs.get("class", "").split() for attrs, _ in page.spans[: len(share)]]
    assert dropped == [kept == 0 for kept in share]


def test_a_method_without_scores_is_shown_so(report: Report, draw: Callable[[str], Drawn]) -> None:
    page = draw("text.method=snapkv&text.budget=64 tokens&text.layer=3")
    kept = report.cases[0].views[1].layers[0].kept
    tokens = [attrs for attrs, _ in page.spans[: len(kept)]]
    assert ["dropped" in attrs.get("class", "").split() for attrs in tokens] == [share == 0 for share in kept]
    assert page.text("text.missing").startswith("This method has no scores at layer 3: nothing is shaded")
    assert {attrs["style"] for attrs in tokens} == {"--shade: 0.000;"}


def test_the_stages_of_a_mosaic_end_with_what_was_left(report: Report, draw: Callable[..., Drawn]) -> None:
    page = draw("picture.case=1")
    mosaic = report.cases[2]
    assert isinstance(mosaic, ImageCase)
    last = mosaic.views[0].layers[-1]
    assert page.text("picture.status") == (
        "tome at 50 % keeps 2 of 6 patches from layer 2 on (33.3 %); 3 are merged into others, 1 dropped."
    )
    assert page.stages == [
        ("before the model: 5 kept, 0 merged, 1 dropped", False),
        ("from layer 2 on: 2 kept, 3 merged, 1 dropped", True),
    ]
    veils = [float(attrs["fill-opacity"]) for attrs in page.rects[:6]]
    assert last.into is not None
    states = zip(last.kept, last.into, strict=True)
    assert veils == [0 if kept else 0.88 if into == -1 else 0.5 for kept, into in states]
    assert "no patches (2)" in page.text("picture.key")
    assert not [attrs for attrs in page.rects if attrs.get("class")]


@pytest.mark.parametrize(
    ("keys", "at", "family", "words"),
    [
        ("ArrowRight", 0, {0, 2, 4}, "kept, and 2 merged into it: crop 1, row 1, column 1; crop 2, row 1, column 1"),
        ("ArrowRight ArrowRight", 1, set(), "· kept"),
        ("ArrowRight ArrowRight ArrowRight ArrowRight", 4, {0, 2, 4}, "row 1, column 1, with 1 more"),
        ("ArrowRight ArrowRight ArrowRight ArrowRight ArrowDown", 5, set(), "· dropped"),
        ("a ArrowRight ArrowRight ArrowRight ArrowRight ArrowDown ArrowLeft", 3, set(), "a token that is no patch"),
        ("ArrowRight ArrowUp ArrowLeft", 0, {0, 2, 4}, "kept, and 2 merged"),
    ],
)
def test_keys_show_what_was_merged_into_what(
    keys: str, at: int, family: set[int], words: str, draw: Callable[..., Drawn]
) -> None:
    page = draw("picture.case=1", keys)
    classes = [set(attrs.get("class", "").split()) for attrs in page.rects[:6]]
    assert [place for place, names in enumerate(classes) if "active" in names] == [at]
    assert {place for place, names in enumerate(classes) if "related" in names} == family
    assert words in page.text("picture.readout")
