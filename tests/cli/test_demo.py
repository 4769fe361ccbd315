"""demo: the whole of it, on fewer methods and cases than it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tithe
from tithe.bench import specs
from tithe.cli import demo


def test_every_method_of_the_demonstration_is_there_and_fits() -> None:
    for kind, labels in demo.METHODS.items():
        for spec in specs.collect(labels, {}):
            assert all(kind in part.factory.card.hosts for part in spec.parts)
    assert all("vlm" in part.factory.card.hosts for spec in specs.collect(demo.SCENES, {}) for part in spec.parts)


def data_of(html: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def test_tables_and_a_page(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "METHODS", {"llm": ("snapkv",), "vlm": ("hiprune",), "vit": ("tome",)})
    monkeypatch.setattr(demo, "EACH", {"llm": 1, "vlm": 1, "vit": 1})
    monkeypatch.setattr(demo, "KEEPS", (0.25,))
    result = call("demo", "-n", "1", "--json")
    assert result.exit_code == 0, result.stderr
    payload = json.loads(result.stdout)
    assert payload["report"] == "tithe-report.html" and payload["refused"] == []
    shown = {(row["model"], row["method"], row["question"]) for row in payload["rows"]}
    for where in ("inside", "after"):
        assert {("zoo:llm", "snapkv", where), ("zoo:llm", "random", where), ("zoo:vlm", "hiprune", where)} <= shown
    assert {("zoo:vit", "tome", None), ("zoo:vit", "untouched", None)} <= shown
    for name in ("zoo:llm: multikey, 1 cases", "zoo:vlm: vqa", "zoo:vit: digits"):
        assert name in result.stderr
    html = (tmp_path / "tithe-report.html").read_text()
    assert "asked after compression" in html and "2404.14469" in html
    assert [path.name for path in tmp_path.iterdir()] == ["tithe-report.html"]
    page, clip = [case for case in data_of(html)["cases"] if case["model"] == "zoo:scenes"]
    assert len(page["pictures"]) == 5 and [one["place"] for one in page["pictures"]][1:3] == [[0, 0], [0, 1]]
    assert [one["name"] for one in clip["pictures"]] == [f"frame {n + 1}" for n in range(8)]
    for case in (page, clip):
        assert [view["method"] for view in case["views"]] == list(demo.SCENES)


def test_your_own_model_in_their_place(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "METHODS", {**demo.METHODS, "vit": ("tome",)})
    monkeypatch.setattr(demo, "EACH", {**demo.EACH, "vit": 1})
    model, reader = tithe.zoo.load("vit")
    model.save_pretrained(tmp_path / "mine")
    reader.save_pretrained(tmp_path / "mine")
    result = call("demo", "--model", "./mine", "-n", "1", "--out", "mine.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert {row["model"] for row in json.loads(result.stdout)["rows"]} == {"./mine"}
    assert (tmp_path / "mine.html").is_file()
