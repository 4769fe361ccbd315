"""The house rules: sizes, rooms, names and likeness."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from itertools import combinations
from pathlib import Path

import pytest

import tithe

ROOT = Path(tithe.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CAPS = {"methods": 80, "hosts": 120}
GLOSSARY = {
    "keep", "sink", "recent", "window", "layer", "heads", "kernel", "temperature", "seed",
}  # fmt: skip
SYNONYMS = {
    "ratio": "keep", "budget": "keep", "n_keep": "keep", "k": "keep", "sinks": "sink", "n_sink": "sink",
    "start_size": "sink", "recent_size": "recent", "window_size": "window", "obs_window": "window",
    "kernel_size": "kernel", "pool_kernel": "kernel", "layer_idx": "layer", "layers": "layer", "head": "heads",
    "temp": "temperature", "random_state": "seed",
}  # fmt: skip


def code_lines(path: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    text = path.read_text()
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docs.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in docs)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_small(path: Path) -> None:
    assert code_lines(path) <= CAPS.get(room(path), 300)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_room_holds_only_what_belongs_there(path: Path) -> None:
    text = path.read_text()
    if room(path) in ("scores", "selections", "actions", "methods", "budget.py", "types.py"):
        assert not re.search(r"^\s*(from|import) transformers", text, re.M)
    if room(path) == "page":
        assert not re.search(r"^\s*(from|import) torch", text, re.M)
    if room(path) == "methods":
        assert not re.search(r"register_forward_|isinstance\(\s*model|__class__", text)
    if room(path) == "scores":
        assert "Budget" not in text and "topk(" not in text
    if room(path) == "hosts":
        named = [slug for slug in tithe.factories() if len(slug) > 4 and re.search(rf"\b{re.escape(slug)}\b", text)]
        assert not named
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError\s*$", text, re.M)


@pytest.mark.parametrize("slug", tithe.factories())
def test_parameters_are_spelled_as_everywhere(slug: str) -> None:
    for name in tithe.factories()[slug].parameters:
        assert name not in SYNONYMS, f"{slug}: {name} is spelled {SYNONYMS[name]} here"


def test_methods_are_not_copies() -> None:
    """No two method files are alike in more than 0.8 of their code."""
    bodies = {}
    for slug, factory in tithe.factories().items():
        bodies[slug] = [line.strip() for line in inspect.getsource(factory.build).splitlines() if line.strip()]
    for (a, left), (b, right) in combinations(bodies.items(), 2):
        left, right = ([line for line in body if "=" in line or "(" in line] for body in (left, right))
        code = [
            line
            for line in left
            if not re.match(r"(slug|title|year|arxiv|code|family|hosts|fidelity|saving|mechanism)=", line)
        ]
        other = [
            line
            for line in right
            if not re.match(r"(slug|title|year|arxiv|code|family|hosts|fidelity|saving|mechanism)=", line)
        ]
        likeness = difflib.SequenceMatcher(None, code, other, autojunk=False).ratio()
        assert likeness <= 0.8, f"{a} and {b} are alike by {likeness:.2f}"


def test_public_names_are_sorted_and_exist() -> None:
    assert list(tithe.__all__) == sorted(tithe.__all__)
    assert all(hasattr(tithe, name) for name in tithe.__all__)
