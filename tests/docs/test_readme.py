"""What the pages tell a reader to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_group

from tithe.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"(?<!-->\n)```python\n(.*?)```", re.S)
SHELL = re.compile(r"```(?:sh|console)\n(.*?)```", re.S)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON.search(page.read_text())], ids=named)
def test_python_blocks_run(page: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page run one after the other, as a reader would type them."""
    names: dict[str, Any] = {}
    for block in PYTHON.findall(page.read_text()):
        exec(compile(block, named(page), "exec"), names)
    printed = capsys.readouterr().out
    if page.name == "README.md":
        assert printed.splitlines()[0].strip() == "parser option"
        assert "snapkv (real saving)" in printed
    if page.name == "architecture.md":
        assert "parser option" in printed
        assert "[0.25, 24, None]" in printed


def commands(page: Path) -> list[str]:
    lines = [line.removeprefix("$ ") for block in SHELL.findall(page.read_text()) for line in block.splitlines()]
    inline = re.findall(r"`((?:tithe|make|python) [^`\n]+)`", page.read_text())
    return [
        line.split("#")[0].split("|")[0].strip() for line in lines if re.match(r"(tithe|make|python) ", line)
    ] + inline


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist(page: Path) -> None:
    """Every command line on a page is one that the program, the Makefile or the scripts accept."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in commands(page):
        program, first, *rest = shlex.split(command)
        if program == "make":
            assert first in targets, command
        elif program == "python":
            assert first == "-m" or (ROOT / first).exists(), command
        else:
            verbs = get_group(app).commands
            assert first in verbs, command
            verbs[first].make_context(first, rest)


def test_the_tree_is_the_package() -> None:
    """The README's tree names every room and file of the package, and no other."""
    tree = (ROOT / "README.md").read_text().split("    src/tithe/\n")[1].split("\n\n")[0]
    told = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    there = {path.name for path in (ROOT / "src" / "tithe").iterdir() if not path.name.startswith("_")}
    assert told == there - {"py.typed"}


def test_refused_as_the_readme_says(build: ModuleType) -> None:
    """A few of the refusals in the README's list, as examples of the rest."""
    from transformers import StaticCache

    import tithe
    from tithe.errors import BadInput, Refused

    model, tokenizer = tithe.zoo.load("llm")
    inputs = tokenizer("def", return_tensors="pt")
    with pytest.raises(BadInput, match="Did you mean 'snapkv'"):
        tithe.on(model, "snapvk")
    with pytest.raises(Refused, match="vlm"):
        tithe.on(model, "fastervlm")
    with tithe.on(model, "snapkv"):
        with pytest.raises(Refused, match="already attached"):
            tithe.on(model, "h2o")
        with pytest.raises(Refused, match="use_cache=False"):
            model(**inputs, use_cache=False)
        with pytest.raises(Refused, match="fixed shape"):
            model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=16))
