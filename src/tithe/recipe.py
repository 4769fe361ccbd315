"""``tithe.yaml``: methods with their parameters as a file, to be attached, run and served elsewhere.

    tithe: 1
    model: zoo:llm
    methods:
      - method: snapkv
        keep: 0.25

``model`` and ``picked`` (how it was chosen) are notes; they bind nobody.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tithe import files
from tithe.errors import BadInput, nearest

FORMAT = 1
NAMES = ("tithe", "model", "methods", "picked")
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Recipe:
    """Slugs with their parameters, in the order in which they act; ``model`` and ``picked`` are notes."""

    entries: tuple[tuple[str, Mapping[str, Any]], ...]
    model: str | None = None
    picked: Mapping[str, Any] = field(default_factory=dict)

    def methods(self) -> tuple[Any, ...]:
        """Return the methods.

        Raises:
            BadInput: an unknown method or parameter, or a value out of range.
        """
        from tithe import catalogue

        return tuple(catalogue.get(slug)(**params) for slug, params in self.entries)

    def to_text(self) -> str:
        """Return the recipe as YAML."""
        told: dict[str, Any] = {"tithe": FORMAT}
        if self.model is not None:
            told["model"] = self.model
        told["methods"] = [{"method": slug, **_plain(params)} for slug, params in self.entries]
        if self.picked:
            told["picked"] = _plain(self.picked)
        return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe; a reader sees the old file or the new one, never a part."""
        return files.write_text(path, self.to_text())


def is_path(given: object) -> bool:
    """Whether ``given`` names a recipe rather than a method."""
    return isinstance(given, os.PathLike) or (isinstance(given, str) and given.endswith(SUFFIXES))


def read(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Raises:
        BadInput: no such file, no YAML, another format, or an unknown name in it; methods and their parameters are
            checked too.
    """
    where = f"recipe='{os.fspath(path)}'"
    try:
        told = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{where} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where} cannot be read as UTF-8 text: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return _recipe(told)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def _recipe(told: Any) -> Recipe:
    if not isinstance(told, dict) or "tithe" not in told:
        raise BadInput("this is no tithe.yaml: it must begin with 'tithe: 1'.")
    if told["tithe"] != FORMAT:
        raise BadInput(f"format {told['tithe']!r} is not known; this Tithe reads {FORMAT}.")
    _known(told, NAMES, "entry")
    model, picked = told.get("model"), told.get("picked") or {}
    if model is not None and not isinstance(model, str):
        raise BadInput(f"model={model!r} is no text.")
    if not isinstance(picked, dict):
        raise BadInput(f"picked={picked!r} is no mapping.")
    listed = told.get("methods")
    if not isinstance(listed, list) or not listed:
        raise BadInput("methods is empty: give a list of entries such as '- method: snapkv'.")
    recipe = Recipe(tuple(_entry(at, entry) for at, entry in enumerate(listed, 1)), model, _plain(picked))
    recipe.methods()
    return recipe


def _entry(at: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        raise BadInput(f"methods, entry {at}: {entry!r} names no method; write '- method: snapkv' and its parameters.")
    params = {str(name): _given(value) for name, value in entry.items() if name != "method"}
    return entry["method"], params


def _given(value: Any) -> Any:
    """Lists become tuples, as parameters are written in Python."""
    return tuple(_given(part) for part in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value


def _known(told: Mapping[Any, Any], names: Sequence[str], what: str) -> None:
    for name in told:
        if name not in names:
            raise BadInput(f"{what} {name!r} is not known.{nearest(str(name), names)} Possible: {', '.join(names)}.")
