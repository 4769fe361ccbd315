"""What a harness is given is read as the rest of Tithe reads it, and what nobody knows is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.conftest import Shell

from tithe.errors import BadInput
from tithe.harness import arguments

KNOWN = {"device", "batch_size"}


def test_a_method_takes_its_parameters_and_leaves_the_rest() -> None:
    given = {"method": "snapkv", "keep": 0.2, "window": "8", "device": "cpu", "batch_size": None, "after": 3}
    found = arguments.read(given, KNOWN)
    (method,) = found.methods
    assert (method.card.slug, method.params["keep"], method.params["window"]) == ("snapkv", 0.2, 8)
    assert (found.label, found.after, found.rest) == ("snapkv", 3, {"device": "cpu"})


@pytest.mark.parametrize(("given", "wanted"), [(1.0, 1.0), (64, 64), ("0.5", 0.5), ("2MB", "2MB")])
def test_budgets_are_fractions_counts_and_bytes(given: Any, wanted: Any) -> None:
    (method,) = arguments.read({"method": "snapkv", "keep": given}, KNOWN).methods
    assert method.params["keep"] == wanted


def test_several_methods_act_in_order_each_with_its_own() -> None:
    found = arguments.read({"method": "snapkv:window=8+kivi", "keep": 0.5}, KNOWN)
    assert [one.card.slug for one in found.methods] == ["snapkv", "kivi"]
    assert found.methods[0].params["window"] == 8


@pytest.mark.parametrize("name", ["recipe", "method"])
def test_a_recipe_names_its_methods(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tithe.yaml"
    path.write_text("tithe: 1\nmethods:\n- {method: knorm, keep: 0.25}\n", encoding="utf-8")
    (method,) = arguments.read({name: str(path)}, KNOWN).methods
    assert (method.card.slug, method.params["keep"]) == ("knorm", 0.25)


@pytest.mark.parametrize("given", [{}, {"method": None}, {"method": "untouched"}])
def test_no_method_is_the_untouched_model(given: dict[str, Any]) -> None:
    found = arguments.read({**given, "device": "cpu"}, KNOWN)
    assert (found.methods, found.label, found.rest) == ((), "untouched", {"device": "cpu"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "snapvk"}, "Did you mean 'snapkv'"),
        ({"method": "snapkv", "kep": 0.1}, "no argument 'kep'. Did you mean 'keep'"),
        ({"method": "snapkv", "keep": 1.5}, "keep=1.5"),
        ({"method": "snapkv", "keep": "much"}, "keep='much'"),
        ({"method": "kivi", "keep": 0.1}, "no argument 'keep'"),
        ({"keep": 0.1}, "without a method"),
        ({"after": 1}, "without a method"),
        ({"method": "snapkv", "after": -1}, "after=-1"),
        ({"method": "snapkv", "after": "two"}, "after='two'"),
        ({"method": "snapkv", "recipe": "tithe.yaml"}, "both given"),
        ({"recipe": "nowhere.yaml"}, "does not exist"),
        ({"devise": "cpu"}, "Did you mean 'device'"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        arguments.read(given, KNOWN)


def test_models_of_the_zoo_are_folders_and_others_stay() -> None:
    assert Path(arguments.place("zoo:llm"), "config.json").is_file()
    assert arguments.place("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(BadInput, match="Did you mean"):
        arguments.place("zoo:lm")


def test_an_unknown_harness_is_one_line(shell: Shell) -> None:
    done = shell("-m", "tithe.harness", "lm_evil")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.strip()
        == "tithe: harness='lm_evil' is not known. Did you mean 'lm_eval'? Possible: lm_eval, lmms_eval."
    )
