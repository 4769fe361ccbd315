from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from page.browser import Opened, launched, opened

from tithe.page import CardRow, ImageCase, LayerView, Picked, Picture, Report, TextCase, View
from tithe.page.data import ELSEWHERE

HOSTILE = (
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "{{7*7}}",
    "{% raw %}",
    "one\u2028two\u2029three",
    "\u202eright to left",
    "<!--",
    "]]>",
    "&lt;b&gt;",
    "'\"`${1}",
    " 日本語 שלום",
    "\ud800",
    "\x1b[31m",
    "",
    "\n",
    "\t  ",
)


class Page(HTMLParser):
    """What a page holds once parsed: its tags with attributes, and the text inside each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inside: list[tuple[str, dict[str, str], str]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append((tag, named))
        if tag in {"title", "h1", "h3", "script", "style", "a", "span", "dd", "p"}:
            self._open.append((tag, named, []))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            name, attrs, parts = self._open.pop()
            self.inside.append((name, attrs, "".join(parts)))
            if self._open:
                self._open[-1][2].extend(parts)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1][2].append(data)

    def texts(self, tag: str) -> list[str]:
        return [text for name, _, text in self.inside if name == tag]

    @property
    def scripts(self) -> list[str]:
        return [text for name, attrs, text in self.inside if name == "script" and "type" not in attrs]

    @property
    def data(self) -> dict[str, Any]:
        (found,) = [text for name, attrs, text in self.inside if name == "script" and attrs.get("id") == "data"]
        return json.loads(found)


@pytest.fixture
def read_page() -> Callable[[str], Page]:
    return Page


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def layer(at: int | None, n: int, scored: bool = True) -> LayerView:
    scores = tuple(math.nan if token % 5 == 4 else float((7 * token) % n) for token in range(n))
    return LayerView(at, scores if scored else None, tuple((token % 4) / 3 for token in range(n)))


def views(n: int, answer: str = "amber") -> tuple[View, ...]:
    first = (layer(0, n), layer(1, n, scored=False))
    return (
        View("snapkv", 0.25, answer, True, first),
        View("snapkv", 64, answer, False, (LayerView(3, None, tuple(float(token % 3 == 0) for token in range(n))),)),
        View("snapkv+kivi", None, answer, None, (layer(None, n), layer(2, n))),
    )


def merged(at: int | None, name: str = "") -> LayerView:
    """Six patches: the first holds the third and the fifth, the fourth is in what is not shown, the sixth is gone."""
    kept = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    return LayerView(at, (6.0, 5.0, 4.0, 3.0, 2.0, 1.0), kept, (-1, -1, 0, ELSEWHERE, 0, -1), name)


def row(**changed: object) -> dict[str, Any]:
    return {
        "model": "zoo/llm", "task": "recall", "method": "snapkv", "keep": 0.25, "quality": 0.9,
        "quality_full": 0.98, "kept_tokens": 128, "total_tokens": 512, "kv_bytes": 1024, "kv_allocated": 1536,
        "kv_bytes_full": 4096, "flops": 10, "flops_full": 20, "prefill_ratio": 1.05, "decode_ratio": None,
        "saving": "real", "n": 100, "seed": 0, "question": "after", **changed,
    }  # fmt: skip


@pytest.fixture
def card() -> CardRow:
    return CardRow("snapkv", "SnapKV", 2024, "2404.14469", "The last queries vote.", "official", "real", "context",
                   "FasterDecoding/SnapKV")  # fmt: skip


@pytest.fixture
def report(card: CardRow) -> Report:
    """Every kind of content, and in every text something that would do harm if it were not escaped."""
    nasty = CardRow(HOSTILE[1], HOSTILE[0], None, None, HOSTILE[2], "paper-only", HOSTILE[8])
    text = TextCase(HOSTILE[0], HOSTILE, *HOSTILE[1:4], views(len(HOSTILE), HOSTILE[0]))
    stages = (LayerView(None, None, (1.0,) * 4 + (0.0, 1.0)), merged(2, "from layer 2 on"))
    crops = (
        Picture(png(4, 4), (4, 4), (1, 2), name=HOSTILE[1]),
        Picture(png(4, 8), (4, 8), (2, 2), (0, 3), place=(0, 0), name="crop 1"),
        Picture(png(4, 8), (4, 8), (2, 1), place=(0, 1), name="crop 2"),
    )
    image = ImageCase("zoo/vlm", (Picture(png(12, 8), (12, 8), (2, 3)),), HOSTILE[0], "7", "1", views(6))
    mosaic = ImageCase("m", crops, "q", "e", "u", (View("tome", 0.5, "a", None, stages, staged=True),), aside=2)
    rows = (
        row(),
        row(method="kivi", saving="simulated", keep=None, quality=0.8),
        row(method=HOSTILE[0], seed=1, quality=math.nan, saving=None, question=None),
        row(method="random", seed=2, quality=0.1, decode_ratio=0.5, question="inside"),
    )
    return Report("".join(HOSTILE), HOSTILE[1], "0.1.0", (card, nasty), (text, image, mosaic), rows)


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    return row


METHODS = {"adakv": 0.97, "snapkv": 0.95, "h2o": 0.6, "knorm": 0.5, "random": 0.2}
KEEPS = (0.5, 0.25, 0.1)
LENGTHS = (256, 512)
RECIPE = "tithe: 1\nmethods:\n  - method: adakv\n    keep: 0.25\n"


def measured(task: str, length: int, method: str, keep: float | None, at: int) -> dict[str, Any]:
    """A row as a benchmark gives it: the figures are made up, yet consistent with each other."""
    full = 0.96 - 0.02 * LENGTHS.index(length)
    share = 1.0 if keep is None else keep
    quality = full if keep is None else round(full * (1 - (1 - METHODS[method]) * (1 - keep)) - 0.003 * at, 4)
    low, high = (round(quality - full + step, 4) for step in (-0.03, 0.03))
    verdict = "equal" if keep is None else "worse" if high < 0 else "too few"
    return row(
        model="zoo/reader", task=task, length=length, method=method, keep=keep, quality=quality, quality_full=full,
        quality_low=round(quality - 0.05, 4), quality_high=round(min(1.0, quality + 0.05), 4), low=low, high=high,
        verdict=verdict, agreement=quality, kl=1 - quality, kept_tokens=share * length, total_tokens=length,
        kv_bytes=round(100 * length * share) + at, kv_bytes_full=100 * length, flops=1000 + at, flops_full=2000,
        prefill_ratio=1.2 - 0.01 * at, decode_ratio=0.5 + share / 2, seed=0, n=64,
        saving="none" if keep is None else "simulated" if method == "knorm" else "real",
        by_depth=[[0.0, quality, 20], [0.5, round(quality / 2, 4), 24], [1.0, quality, 20]],
        extras={"hallucinated": round((1 - quality) / 3, 4)},
    )  # fmt: skip


def benchmark() -> tuple[dict[str, Any], ...]:
    rows = []
    for task in ("multikey", "words"):
        for length in LENGTHS:
            rows.append(measured(task, length, "untouched", None, 0))
            pairs = [(method, keep) for method in METHODS for keep in KEEPS]
            rows += [measured(task, length, *pair, at) for at, pair in enumerate(pairs)]
    return tuple(rows)


@pytest.fixture
def picked_report(card: CardRow) -> Report:
    rows = benchmark()
    own = [one for one in rows if (one["task"], one["length"]) == ("multikey", 512) and one["method"] != "untouched"]
    trials = tuple({**one, "trial": at + 1, "rung": at % 3} for at, one in enumerate(own))
    winner = next(one for one in own if (one["method"], one["keep"]) == ("adakv", 0.25))
    drop = winner["quality_full"] - winner["quality"]
    picked = Picked(
        "adakv", 0.25, winner["quality"], drop, winner["low"], winner["high"], ("quality lost <= 0.1", HOSTILE[1]),
        "snapkv", 0.25, "It is dearer.", RECIPE, trials,
    )  # fmt: skip
    other = CardRow("adakv", "Ada-KV", 2024, "2407.11550", "Heads share a budget.", "official", "real", "context")
    return Report("A choice", "today", "0.1.0", (card, other), (), rows, picked=picked)


@pytest.fixture(scope="session")
def tab() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.fixture
def visit(tab: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens reports; each must have been quiet, and have loaded nothing, when the test ends."""
    pages: list[Opened] = []

    def open_it(report: Report, address: str = "", **options: Any) -> Opened:
        if pages:
            pages.pop().close()
        pages.append(opened(tab, report, tmp_path, address, **options))
        return pages[-1]

    yield open_it
    for page in pages:
        page.close()
