"""Recipes come back as they were written; whatever else is in a file is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from drawn import MODES, SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tithe
from tithe import recipe
from tithe.errors import BadInput, TitheError
from tithe.recipe import Recipe

FEW = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=3000, derandomize=True, print_blob=True)
VALID = b"""tithe: 1
model: zoo:llm
methods:
  - method: snapkv
    keep: 0.25
    window: 8
    schedule: [chunk, 64]
  - method: kivi
    bits: 2
picked:
  task: needle
  interval: [-0.1, 0.0]
"""
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.dates(), st.binary(max_size=4))
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
NOTES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    slug = draw(st.sampled_from(sorted(tithe.factories())))
    factory = tithe.factories()[slug]
    params = {name: draw(SMALL[name]) for name in factory.parameters if name in SMALL and draw(st.booleans())}
    if "keep" in factory.parameters:
        params["keep"] = draw(st.floats(0.01, 1.0) | st.integers(1, 999) | st.just("256MB"))
    names = draw(st.lists(st.sampled_from(sorted(MODES)), max_size=2, unique=True))
    params |= {name: draw(MODES[name]) for name in names if name not in factory.parameters}
    return slug, params


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """The valid file with some bytes put in, taken out or changed, or cut off."""
    text = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text) - 1)) if text else 0
        how = draw(st.sampled_from(["change", "insert", "delete", "swap", "cut"]))
        if how == "insert" or not text:
            text[at:at] = draw(
                st.binary(min_size=1, max_size=3) | st.sampled_from([b"\t", b": ", b"- ", b"&a ", b"*a", b"!!"])
            )
        elif how == "change":
            text[at] = draw(st.integers(0, 255))
        elif how == "delete":
            del text[at : at + draw(st.integers(1, 20))]
        elif how == "swap":
            text[at : at + 1] = b" " if text[at : at + 1] == b"\n" else b"\n"
        elif draw(st.integers(0, 5)) == 0:
            del text[at:]
    return bytes(text)


@st.composite
def trees(draw: st.DrawFn) -> bytes:
    """Something like a recipe: its names with random values, or any tree at all."""
    entry = {"method": draw(st.sampled_from(["snapkv", "kivi", 3])), "keep": draw(st.just(0.5) | TREES)}
    entry |= {draw(TEXTS): draw(TREES)} if draw(st.integers(0, 3)) == 0 else {}
    entry |= {
        name: draw(TREES)
        for name in draw(st.lists(st.sampled_from(["window", "schedule", "bits", "share"]), max_size=1))
    }
    told = {
        "tithe": draw(st.just(1) | TREES),
        "methods": draw(st.just([entry]) | TREES),
        "picked": draw(st.just({}) | TREES),
        "model": draw(st.just("zoo:llm") | TREES),
    }
    return yaml.safe_dump(draw(st.just(told) | TREES), allow_unicode=True).encode("utf-8", "surrogatepass")


def tried(path: Path, content: bytes) -> bool:
    """Read ``content``; return whether it was a recipe, and hold it to one line where it was none."""
    path.write_bytes(content)
    try:
        found = recipe.read(path)
    except TitheError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return False
    assert recipe.read(found.write(path)) == found or "nan" in found.to_text()
    return True


@FEW
@given(st.lists(entries(), min_size=1, max_size=3), st.none() | TEXTS, st.dictionaries(TEXTS, NOTES, max_size=3))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, listed: list[Any], model: str | None, picked: dict[str, Any]
) -> None:
    made, path = Recipe(tuple(listed), model, picked), tmp_path_factory.mktemp("recipe") / "tithe.yaml"
    try:
        methods = made.methods()
    except TitheError:
        with pytest.raises(TitheError) as caught:
            recipe.read(made.write(path))
        assert "\n" not in str(caught.value)
        return
    again = recipe.read(made.write(path))
    assert again == made and [one.params for one in again.methods()] == [one.params for one in methods]


def fuzz(profile: settings, path: Path) -> list[bool]:
    found = []

    @profile
    @given(mangled() | trees())
    def one(content: bytes) -> None:
        found.append(tried(path, content))

    one()
    return found


def test_a_few_spoilt_files(tmp_path: Path) -> None:
    found = fuzz(FEW, tmp_path / "t.yaml")
    assert {*found} == {True, False}


@pytest.mark.slow
def test_many_spoilt_files(tmp_path: Path) -> None:
    found = fuzz(MANY, tmp_path / "t.yaml")
    assert {*found} == {True, False}


@pytest.mark.parametrize(
    "content", [b"[" * 5000, b"a: &a [*a]\ntithe: 1", b"\x00", b"\xff\xfe", b"tithe: 1\n? [a]\n: b"]
)
def test_the_worst_of_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.yaml").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        recipe.read(tmp_path / "t.yaml")
    assert "\n" not in str(caught.value)
