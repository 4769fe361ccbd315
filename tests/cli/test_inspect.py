"""inspect: the page for one input."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tithe.bench.tasks import canvas, scenes

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_a_page_for_a_text_escapes_what_the_model_read(call: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.txt").write_text(f"set name {EVIL}\n" * 4)
    given = ("inspect", "--file", "evil.txt", "-q", f"get {EVIL}", "--methods", "snapkv:window=8,random")
    result = call(*given, "--keep", "0.5,20", "--max-new-tokens", "2", "--out", "page.html", "--json")
    assert result.exit_code == 0, result.stderr
    payload = json.loads(result.stdout)
    assert payload["report"] == "page.html" and payload["model"] == "zoo:llm"
    assert [(view["method"], view["keep"]) for view in payload["views"]] == [
        ("snapkv:window=8", 0.5), ("snapkv:window=8", 20), ("random", 0.5), ("random", 20)
    ]  # fmt: skip
    html = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in html and "<img src=x" not in html and "alert" in html
    assert not re.search(r"(src|href)=[\"']https?://(?!arxiv\.org|github\.com)", html)


def test_a_page_for_a_picture(call: Any, tmp_path: Path) -> None:
    case = canvas.vqa_case(0, "test")
    Image.fromarray(case.image).save(tmp_path / "canvas.png")
    given = ("inspect", "-m", "zoo:vlm", "-i", "canvas.png", "-q", case.question, "--methods", "hiprune,hiprune+kivi")
    result = call(*given, "--keep", "0.25", "--max-new-tokens", "2")
    assert result.exit_code == 0 and result.stdout == "wrote tithe-inspect.html\n" and not result.stderr
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()[:10]
    assert picture in (tmp_path / "tithe-inspect.html").read_text()


def data_of(path: Path) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found)


def test_a_page_for_a_clip_and_for_pictures(call: Any, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    images = scenes.case(3, "test", ("where",)).scene.images
    for frame, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "clip" / f"{frame}.png")
    given = (
        "--methods",
        "visionzip,pyramiddrop",
        "--keep",
        "0.25",
        "--max-new-tokens",
        "2",
        "-o",
        "page.html",
        "--json",
    )
    result = call("inspect", "--video", "clip", "-q", "where is 7 at t1", *given)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "zoo:scenes"
    (case,) = data_of(tmp_path / "page.html")["cases"]
    assert [one["name"] for one in case["pictures"]] == [f"frame {n + 1}" for n in range(8)]
    merges, drops = case["views"]
    assert merges["layers"][0]["into"] and merges["layers"][0]["total"] == pytest.approx(32, abs=1)
    totals = [layer["total"] for layer in drops["layers"]]
    assert drops["staged"] and len(totals) == 3 and totals == sorted(totals, reverse=True)

    pictures = ("-i", "clip/0.png", "-i", "clip/1.png", "-m", "zoo:scenes")
    assert call("inspect", *pictures, "-q", "which picture is red 3", *given).exit_code == 0
    (case,) = data_of(tmp_path / "page.html")["cases"]
    assert [one["name"] for one in case["pictures"]] == ["picture a", "picture b"]
    html = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=[\"']https?://(?!arxiv\.org|github\.com)", html)


def test_a_page_for_a_classifier(call: Any, tmp_path: Path) -> None:
    Image.fromarray(canvas.digits_case(0, "test").image).save(tmp_path / "canvas.png")
    result = call("inspect", "-m", "zoo:vit", "-i", "canvas.png", "--methods", "tome,ats", "--keep", "0.5", "--json")
    assert result.exit_code == 0
    assert [view["keep"] for view in json.loads(result.stdout)["views"]] == [0.5, None]
