"""tithe.yaml: written, read back, attached, and refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tithe
from tithe import recipe
from tithe.bench import specs
from tithe.errors import BadInput
from tithe.recipe import Recipe
from tithe.zoo import load_model

TWO = """tithe: 1
model: zoo:llm
methods:
  - method: snapkv
    keep: 0.25
    window: 8
  - method: kivi
picked:
  task: needle
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tithe.yaml"
    file.write_text(TWO)
    return file


def test_written_and_read_back(tmp_path: Path) -> None:
    entries = (("snapkv", {"keep": 0.25, "schedule": "chunk"}), ("duo-attention", {"keep": 80, "profile": "zoo:llm"}))
    made = Recipe(entries, "zoo:llm", {"task": "needle", "interval": [-0.1, 0.0]})
    assert recipe.read(made.write(tmp_path / "t.yaml")) == made
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]


def test_attached_it_is_what_it_says(path: Path) -> None:
    loaded = load_model("zoo:llm")
    ids = loaded.processor("def read(self):\n    return self.value\n" * 12, return_tensors="pt")
    said = []
    for methods in (str(path), path, [tithe.method("snapkv", keep=0.25, window=8), "kivi"]):
        with tithe.on(loaded.model, methods) as run:
            out = loaded.model.generate(**ids, max_new_tokens=4, do_sample=False)
        said.append((out.tolist(), run.report().kept_tokens, run.report().kv_live))
    assert said[0] == said[1] == said[2]
    assert said[0][1] == round(0.25 * ids["input_ids"].shape[1])


def test_a_spec_of_the_benchmark(path: Path) -> None:
    spec = specs.parse(str(path))
    assert spec.label == "snapkv:keep=0.25:window=8+kivi" and spec.budgets([0.5]) == (None,)
    assert specs.parse(spec.label) == spec
    assert [method.params["keep"] for method in spec.methods(None, {}) if "keep" in method.params] == [0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with 'tithe: 1'"),
        ("- a", "must begin with 'tithe: 1'"),
        ("tithe: 2\nmethods: [{method: snapkv}]", "format 2 is not known; this Tithe reads 1"),
        ("tithe: 1\nmethod: snapkv", "entry 'method' is not known. Did you mean 'methods'"),
        ("tithe: 1\nmethods: []", "methods is empty"),
        ("tithe: 1\nmethods: [snapkv]", "entry 1: 'snapkv' names no method"),
        ("tithe: 1\nmethods: [{method: snapvk}]", "Did you mean 'snapkv'"),
        ("tithe: 1\nmethods: [{method: snapkv, kep: 3}]", "kep"),
        ("tithe: 1\nmethods: [{method: snapkv, keep: 3.5}]", "keep=3.5"),
        ("tithe: 1\nmodel: 3\nmethods: [{method: snapkv}]", "model=3 is no text"),
        ("tithe: 1\npicked: 3\nmethods: [{method: snapkv}]", "picked=3 is no mapping"),
        ("tithe: [1", "is no YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        recipe.read(file)
    assert message in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        recipe.read(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"tithe: 1 # \xe4\xff")
    with pytest.raises(BadInput, match="cannot be read as UTF-8"):
        recipe.read(tmp_path / "latin.yaml")


def test_parameters_beside_a_recipe_go_to_the_others(path: Path) -> None:
    loaded: Any = load_model("zoo:llm")
    with pytest.raises(BadInput, match="no parameter 'keep'"):
        tithe.on(loaded.model, path, keep=0.5)
