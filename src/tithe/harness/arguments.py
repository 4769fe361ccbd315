"""What stands behind ``--model_args``: a model, methods, and whatever the harness's own model class takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tithe.bench import specs
from tithe.errors import BadInput, nearest, unknown
from tithe.types import Method
from tithe.zoo.loader import NAMES, PREFIX

OURS = ("method", "recipe", "keep", "after")


@dataclass(frozen=True)
class Given:
    """``methods``, none for the untouched model, as ``label`` spells them; ``rest`` is for the harness's own class.

    ``after``: how many tokens at the end of a context are read once the others were compressed; None where not given.
    """

    methods: tuple[Method, ...]
    label: str
    after: int | None
    rest: dict[str, Any]


def read(given: Mapping[str, Any], known: Collection[str]) -> Given:
    """Take ``method`` (or ``recipe``), ``keep``, ``after`` and the method's other parameters out of ``given``.

    Args:
        given: name to value, as a harness parsed them: numbers or text; None counts as not given.
        known: the names that the harness's own class takes; those go to ``rest``.

    Raises:
        BadInput: a name that neither side knows, parameters without a method, or a value out of its range.
    """
    left = {name: value for name, value in given.items() if value is not None}
    label, path, after = (left.pop(name, None) for name in ("method", "recipe", "after"))
    if label is not None and path is not None:
        raise BadInput("recipe and method were both given: a recipe names its methods, so leave one of them out.")
    if after is not None and (isinstance(after, bool) or not isinstance(after, int) or after < 0):
        raise BadInput(f"after={after!r} is out of range; give a number of tokens, 0 or more.")
    label = str(path or label or specs.UNTOUCHED)
    if label == specs.UNTOUCHED:
        for name in ("keep", "after"):
            if given.get(name) is not None:
                raise BadInput(f"{name}={given[name]!r} was given without a method: add method=snapkv or another.")
        return Given((), label, None, _known(left, known, ()))
    spec = specs.parse(label)
    mine = {name: left.pop(name) for name in sorted(spec.free) if name in left}
    rest = _known(left, known, spec.free)
    keep = specs.parse_keep(str(mine.pop("keep"))) if "keep" in mine else None
    return Given(
        spec.methods(keep, {name: _value(name, value) for name, value in mine.items()}), spec.label, after, rest
    )


def place(source: str) -> str:
    """Return where ``source`` is loaded from: the folder of a ``zoo:`` model, anything else as it stands."""
    if not source.startswith(PREFIX):
        return source
    name = source.removeprefix(PREFIX)
    if name not in NAMES:
        raise unknown("zoo model", name, NAMES)
    return str(files("tithe.zoo") / name)


def _value(name: str, value: Any) -> Any:
    return specs.parse_params([f"{name}={value}"])[name] if isinstance(value, str) else value


def _known(given: dict[str, Any], known: Collection[str], free: Collection[str]) -> dict[str, Any]:
    mine = {*OURS, *free}
    for name in given:
        if name not in known:
            raise BadInput(
                f"model_args: no argument {name!r}.{nearest(name, {*known, *mine})} "
                f"Tithe's own: {', '.join(sorted(mine))}."
            )
    return given
