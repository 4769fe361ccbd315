"""The report as one HTML file: template, style, scripts and data in the page itself, and nothing loaded."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tithe.files import write_text
from tithe.page.data import ImageCase, Report, TextCase
from tithe.page.rows import DEPTHS, budget

SCRIPTS = (
    "dom.js", "keys.js", "planes.js", "compare.js", "inspector.js", "picture.js", "text.js", "measures.js", "scales.js",
    "chart.js", "table.js", "heat.js", "picked.js", "cards.js", "main.js",
)  # fmt: skip
MINUS = "\u2212"
COST_NAMES = {"kv": "KV bytes", "flops": "FLOPs", "prefill": "time to read", "decode": "time to write"}


def render(report: Report) -> str:
    """The whole page. Its security policy runs these scripts and no other, and lets nothing reach the network."""
    style, theme = _asset("report.css"), _asset("theme.js")
    script = f'"use strict";\n(() => {{\n{"".join(_asset(name) for name in SCRIPTS)}}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(theme)} {_digest(script)};"
        " base-uri 'none'; form-action 'none'"
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"budget": budget, "quality": _quality, "difference": _difference}
    page = environment.from_string(_asset("report.html.j2")).render(
        report=report,
        texts=[case for case in report.cases if isinstance(case, TextCase)],
        images=[case for case in report.cases if isinstance(case, ImageCase)],
        models=_distinct([*(str(row["model"]) for row in report.rows), *(case.model for case in report.cases)]),
        methods=_distinct(
            [
                *(str(row["method"]) for row in report.rows),
                *(view.method for case in report.cases for view in case.views),
            ]
        ),
        costs=COST_NAMES,
        slugs={card.slug for card in report.cards},
        has_depths=any(row.get(DEPTHS) for row in report.rows),
        policy=policy,
        style=Markup(style),
        theme=Markup(theme),
        script=Markup(script),
        data=Markup(report.to_json()),
    )
    # Half a surrogate pair, as a cut byte sequence may leave it, has no UTF-8 form: it becomes U+FFFD.
    return page.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def write(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the page and returns where it stands. A reader sees the old file or the new one, never a part."""
    return write_text(path, render(report))


def _asset(name: str) -> str:
    return (files("tithe.page") / "assets" / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"


def _quality(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def _difference(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS) if round(value, 3) else _quality(abs(value))


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
