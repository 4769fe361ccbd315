"""Every example runs in seconds, and shows what it says it shows."""

from __future__ import annotations

import re
import runpy
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tithe.bench.tasks.canvas import vqa_case

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 10


def output(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run an example and return the lines it prints; CPU seconds, since others may keep the machine busy."""
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)
    start = time.process_time()
    example["main"]()
    assert time.process_time() - start < SECONDS
    return capsys.readouterr().out.splitlines()


def first_number(pattern: str, line: str) -> int:
    found = re.search(pattern, line)
    assert found is not None, line
    return int(found[1])


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_compress_chat(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output("compress_chat", capsys)
    assert [line.split("  ")[0] for line in lines] == ["untouched", "snapkv 0.5", "snapkv 0.1", "kivi"]
    shares = [first_number(r"(\d+)% of the bytes", line) for line in lines]
    assert shares[0] == 100 and shares[1] == 50 and shares[2] == 10 and shares[3] < 20
    first = [first_number(r"first answers (\d+)", line) for line in lines]
    second = [first_number(r"second (\d+)", line) for line in lines]
    assert min(first) >= 5
    assert second[0] >= 5 and second[3] >= 5 and second[2] < second[3]


def test_compose(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output("compose", capsys)
    assert [line.split("  ")[0] for line in lines] == [
        "untouched", "hiprune", "hiprune + snapkv", "hiprune + snapkv + kivi",
    ]  # fmt: skip
    shares = [first_number(r"(\d+)% of the bytes", line) for line in lines[1:]]
    assert 100 > shares[0] > shares[1] > shares[2] > 0
    assert all(first_number(r"right +(\d+)", line) >= 10 for line in lines)


def test_explain_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(output("explain_tokens", capsys))
    waad, fai = text.removeprefix("waad\n").split("\nfai\n")
    for part in (waad, fai):
        scores = [float(line.split()[0]) for line in part.splitlines()]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True) and scores[-1] > 0
    assert waad.count("'set ") >= 3, "facts are what the model looks far back for"


def test_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    right = {line.split()[0]: first_number(r"(\d+)/12", line) for line in output("own_method", capsys)}
    assert list(right) == ["loud-values", "snapkv", "random"]
    assert right["loud-values"] >= 10 > 3 >= right["random"]


def test_own_method_is_twenty_lines() -> None:
    code = (EXAMPLES / "own_method.py").read_text()
    made = code[code.index("@tithe.card") : code.index("def main")]
    assert len([line for line in made.splitlines() if line.strip()]) <= 20


def test_the_picture_is_drawn_with_the_digits_of_the_notice() -> None:
    drawn = vqa_case(8, "test")
    assert np.array_equal(np.asarray(Image.open(EXAMPLES / "digits.png")), drawn.image)
    assert (drawn.question, drawn.answer) == ("what digit is red", "2")
