"""Links lead somewhere, and no page speaks of the machine it was written on."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [
    *PAGES,
    ROOT / "NOTICE",
    *(path for path in (ROOT / "docs").rglob("*") if path.suffix in (".py", ".json", ".svg")),
]
TEXTS += [path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".txt")]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
LOCAL = re.compile(
    r"(?<![\w.])/(?:work|tmp|home|root|Users|var|opt|mnt)/|\b[A-Z]:\\|site-packages|127\.0\.0\.1|localhost"
)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.M):
        plain = re.sub(r"[`*]", "", heading).lower()
        kept = "".join(c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LN")
        found.add(kept.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in ("".join(pair) for pair in LINK.findall(text)):
        if re.match(r"https?:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.is_relative_to(ROOT) and target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_local_path(path: Path) -> None:
    assert not LOCAL.search(path.read_text())


def test_local_paths_are_found() -> None:
    assert LOCAL.search("see /home/me/x") and LOCAL.search("C:\\x") and not LOCAL.search("owner/home/x")


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        for link in ("".join(pair) for pair in LINK.findall(page.read_text())):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in reached:
                todo.append(target)
    assert set(PAGES) <= reached


def test_the_picture_is_well_formed_and_says_what_it_shows() -> None:
    root = ElementTree.parse(ROOT / "docs" / "flow.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None and root.find(f"{space}desc") is not None
    names = [text.text for text in root.iter(f"{space}text") if text.get("class") == "name"]
    assert names == ["tokens", "evidence", "scores", "selection", "action", "trace"]
    style = root.findtext(f"{space}style") or ""
    light, dark = (set(re.findall(r"--(\w+):", part)) for part in style.split("prefers-color-scheme: dark"))
    assert light == dark >= set(re.findall(r"var\(--(\w+)\)", style))
