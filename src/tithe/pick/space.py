"""What there is to choose from: methods at budgets, and what lies beside each in its main parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tithe.bench import specs
from tithe.bench.specs import Spec
from tithe.budget import Keep
from tithe.errors import TitheError
from tithe.types import HostKind

LADDER: tuple[Keep, ...] = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)


@dataclass(frozen=True)
class Candidate:
    """A method as text, ``slug:name=value``, and its budget; None where it has none, or its own."""

    label: str
    keep: Keep | None

    @property
    def spec(self) -> Spec:
        """The methods behind the text."""
        return specs.parse(self.label)

    def __str__(self) -> str:
        if self.keep is None:
            return self.label
        return f"{self.label} keep={self.keep:g}" if isinstance(self.keep, float) else f"{self.label} keep={self.keep}"


def candidates(labels: list[str], keeps: tuple[Keep, ...], kind: HostKind) -> list[Candidate]:
    """Return every method at every budget that it can have; all that serve models of ``kind`` where none is named."""
    found = []
    for label in labels or specs.serving(kind):
        spec = specs.parse(label)
        for keep in spec.budgets(keeps):
            try:
                spec.methods(keep, {})
            except TitheError:
                if labels and len(spec.budgets(keeps)) == 1:
                    raise
                continue
            found.append(Candidate(spec.label, keep))
    return found


def beside(one: Candidate) -> Iterator[Candidate]:
    """Yield the candidates that differ from ``one`` in one main parameter or mode."""
    spec = one.spec
    if len(spec.parts) > 1:
        return
    (part,) = spec.parts
    given = {name: parameter.default for name, parameter in part.factory.parameters.items()} | part.own
    for name, values in NEIGHBOURS.items():
        for value in values(given[name]) if name in given else ():
            yield from _changed(one, spec, name, value)
    for name, value in MODES.get(part.factory.card.family, ()):
        if name not in given:
            yield from _changed(one, spec, name, value)


def _changed(one: Candidate, spec: Spec, name: str, value: Any) -> Iterator[Candidate]:
    (part,) = spec.parts
    own = {**part.own, name: value}
    label = specs.spelled(part.factory.card.slug, own)
    try:
        specs.parse(label).methods(one.keep, {})
    except TitheError:
        return
    yield Candidate(label, one.keep)


def _scaled(value: Any) -> tuple[Any, ...]:
    return (value // 2, value * 2) if isinstance(value, int) and value > 1 else ()


def _odd(value: Any) -> tuple[Any, ...]:
    return tuple(size for size in (3, 5, 7, 13) if size != value) if isinstance(value, int) and value else ()


def _moved(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ()
    return (value - 1, value + 1) if isinstance(value, int) else (value - 0.125, value + 0.125)


def _other(*values: Any) -> Callable[[Any], tuple[Any, ...]]:
    return lambda given: tuple(value for value in values if value != given)


NEIGHBOURS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "window": _scaled,
    "kernel": _odd,
    "block": _scaled,
    "recent": _scaled,
    "sink": _scaled,
    "layer": _moved,
    "bits": _other(2, 4),
    "alpha": _other(0.1, 0.3, 0.5),
}
"""The glossary's main parameters: what else to try, from the value that a method has."""

MODES: dict[str, tuple[tuple[str, Any], ...]] = {
    "context": (("share", "pyramid"), ("share", "entropy"), ("ragged", True)),
    "vision": (("hedge", 0.5),),
}
"""Ways of running a method that every method of a family may have."""
