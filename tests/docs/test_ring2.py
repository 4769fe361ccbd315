"""The page of the lightly trained methods is what its JSON says, and training helped where it says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE, FIGURES = ROOT / "docs" / "ring2.md", ROOT / "docs" / "ring2.json"


def test_every_figure_of_the_page_is_in_the_json() -> None:
    figures, page = json.loads(FIGURES.read_text()), PAGE.read_text()
    wanted = [
        f"| {row['name']} | {row[first]:.3f} | {row[second]:.3f} | {row['spends']} |"
        for about in figures.values()
        for first, second in [about.get("columns", ("recall", "loss"))]
        for row in about["rows"]
    ]
    assert re.findall(r"^\| [^|\n-][^|\n]* \|.*\|$", page, re.M) == wanted
    assert {name.split(",")[0] for name in figures} == {
        "cca-attention", "covipal", "cskv", "docowl2", "rcp", "still", "textmonkey",
    }  # fmt: skip
    for name, about in figures.items():
        assert f"## {name}\n\n{about['what']}\n" in page and about["training"] in page
        assert "steps" in about["training"] and "python training/" in about["training"]
