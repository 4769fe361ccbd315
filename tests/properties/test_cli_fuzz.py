"""Whatever is typed: an answer, or one line and exit code 2; never a traceback, and no file from what was refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tithe.cli import app

FEW = settings(
    max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=900, derandomize=True, print_blob=True)
COMMANDS = ("list", "show", "run", "inspect", "bench", "compare", "pick", "shorten")
GROUP: Any = typer.main.get_command(app)
SLUGS = st.sampled_from(
    ["snapkv", "snapvk", "tome", "kivi", "gemfilter", "fastv", "no such", "snapkv+kivi", "snapkv:keep=0.5"]
)
NUMBERS = st.sampled_from(
    ["0", "-1", "0.5", "1.5", "nan", "inf", "-inf", "1e400", "9" * 30, "0x10", "²", "1_0", "", " ", "3,x", "12MB", "1B"]
)
# None of these can be loaded, whatever is asked of it: no example reads or makes more than a few small files.
MODELS = st.sampled_from(["zoo:llmm", "zoo:", "nowhere/", "./gone", "", "facts.txt", "a/b/c", "~"])
PATHS = st.sampled_from(
    ["facts.txt", "gone.txt", "empty.txt", "latin.txt", ".", "gone/x.html", "", "\x00", "bad.yaml", "x" * 300]
)
SIDES = st.one_of(
    PATHS,
    PATHS.map(lambda path: f"{path}#9"),
    st.sampled_from(["#", "::", "a::b@", "facts.txt#x", "facts.txt::snapkv@0.5", "made.sqlite#7", "made.sqlite"]),
)
PARAMS = st.sampled_from(
    [
        "window=8",
        "window=abc",
        "window",
        "=3",
        "window=(1",
        "nothing=1",
        "window={[]}",
        "window=" + "(" * 99,
        "keep=None",
    ]
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
BY_NAME: dict[str, st.SearchStrategy[str]] = {
    "model": MODELS, "method": SLUGS, "methods": SLUGS, "param": PARAMS, "slug": SLUGS,
    "file": PATHS, "image": PATHS, "video": PATHS, "data": PATHS, "out": PATHS, "yaml": PATHS, "journal": PATHS,
    "first": SIDES, "second": SIDES,
    "task": st.sampled_from(["needle", "neddle", "needle@no", "@", "vqa", ",", ""]),
    "dtype": st.sampled_from(["float32", "float64", "int8", ""]),
    "device": st.sampled_from(["cpu", "cuda:99", "gpu", "", "meta"]),
    "question": st.sampled_from(["inside", "after", "where", ""]),
    "whole": st.sampled_from(["none", "words", "page"]),
    "family": st.sampled_from(["context", "contxt"]),
    "host": st.sampled_from(["llm", "lllm"]),
    "attack": st.sampled_from(["caa", "cat"]),
    "metric": st.sampled_from(["f1", "f2"]),
}  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with random options of its own, sometimes one that it has not; a model is always one that is not."""
    command = draw(st.sampled_from(COMMANDS))
    known = GROUP.commands[command]
    words = [command]
    for one in known.params:
        if isinstance(one, click.Argument) or type(one).__name__.endswith("Argument"):
            words += [draw(BY_NAME.get(one.name, TEXTS))] if draw(st.integers(0, 9)) else []
            continue
        forced = one.name == "model"
        if one.name in ("help", "ray", "trust_remote_code") or not (forced or draw(st.integers(0, 3)) == 0):
            continue
        words.append(draw(st.sampled_from(one.opts)))
        if not one.is_flag:
            words.append(
                draw(
                    st.one_of(BY_NAME.get(one.name, NUMBERS), BY_NAME.get(one.name, NUMBERS), NUMBERS | TEXTS)
                    if not forced
                    else MODELS
                )
            )
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.sampled_from(["--nothing", "-Z", "extra", "--", "--keep"])))
    return words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "facts.txt").write_text("Ann has seven keys.\n")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xff\x00")
    (tmp_path / "bad.yaml").write_text("tithe: 2")
    return tmp_path


def there(folder: Path) -> dict[str, bytes | None]:
    return {str(one.relative_to(folder)): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


def check(words: list[str], before: dict[str, bytes | None], folder: Path) -> int:
    """Type ``words``; return the exit code."""
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(words) from result.exception
    assert result.exit_code in (0, 1, 2), words
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        told = [line for line in result.stderr.splitlines() if not line.startswith(("Usage:", "Try '"))]
        assert len([line for line in told if line.strip()]) == 1, (words, result.stderr)
        assert there(folder) == before, words
    return result.exit_code


def fuzz(profile: settings, folder: Path) -> Counter[tuple[str, int]]:
    ended: Counter[tuple[str, int]] = Counter()
    before = there(folder)

    @profile
    @given(lines())
    def one(words: list[str]) -> None:
        ended[words[0], check(words, before, folder)] += 1

    one()
    return ended


def test_a_few_commands(folder: Path) -> None:
    ended = fuzz(FEW, folder)
    assert {command for command, code in ended if code == 2} == set(COMMANDS), ended
    assert {code for _, code in ended} >= {0, 2}


@pytest.mark.slow
def test_many_commands(folder: Path) -> None:
    ended = fuzz(MANY, folder)
    assert {command for command, code in ended if code == 2} == set(COMMANDS), ended


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--method", "snapkv", "-p", "window={[]}", "--prompt", "a"],
        ["run", "--method", "snapkv", "-p", "window=" + "-" * 100000 + "1", "--prompt", "a"],
        ["run", "--method", "xl3m", "-p", "window=abc", "--prompt", "a"],
        ["run", "--method", "snapkv", "--prompt", "a", "-m", LONG],
        ["run", "--method", "snapkv", "--prompt", "a", "-m", "~no one/x"],
        ["run", "--method", "snapkv", "--video", LONG],
        ["inspect", "--prompt", "a", "--methods", "snapkv", "-o", LONG],
        ["inspect", "--prompt", "a", "--methods", "snapkv", "-o", "~no one/x"],
        ["pick", "--yaml", LONG],
        ["shorten", "facts.txt", "-o", LONG],
        ["compare", LONG, "facts.txt"],
        ["compare", "", ""],
    ],
    ids=lambda words: f"{words[0]} {words[-1][:12]}",
)
def test_commands_that_once_broke(folder: Path, words: list[str]) -> None:
    before = there(folder)
    assert check(words, before, folder) == 2
