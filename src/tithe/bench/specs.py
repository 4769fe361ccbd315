"""Methods as text: ``slug``, ``slug:name=value`` with parameters of its own, ``a+b`` together, or a ``tithe.yaml``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tithe import catalogue, recipe
from tithe.budget import Keep, check_keep
from tithe.catalogue import Factory
from tithe.errors import BadInput, nearest
from tithe.types import HostKind, Method

UNTOUCHED = "untouched"


@dataclass(frozen=True)
class Part:
    """One method and the parameters given to it alone."""

    factory: Factory
    own: dict[str, Any] = field(default_factory=dict)

    def free(self) -> set[str]:
        """Return the names of its parameters that are still to be given."""
        return set(self.factory.parameters) - set(self.own)


@dataclass(frozen=True)
class Spec:
    """One or several methods under one label."""

    label: str
    parts: tuple[Part, ...]

    @property
    def free(self) -> set[str]:
        """The names of all parameters that are still to be given."""
        return set().union(*(part.free() for part in self.parts))

    @property
    def families(self) -> set[str]:
        """The families of its methods."""
        return {part.factory.card.family for part in self.parts}

    def budgets(self, keeps: Sequence[Keep]) -> tuple[Keep | None, ...]:
        """Return the budgets to run it at: one without a name, for a method that has no ``keep`` or has its own."""
        return tuple(keeps) if "keep" in self.free else (None,)

    def methods(self, keep: Keep | None, params: dict[str, Any]) -> tuple[Method, ...]:
        """Return its methods with the parameters that each of them has."""
        given = params if keep is None else {**params, "keep": keep}
        return tuple(
            part.factory(**part.own, **{name: value for name, value in given.items() if name in part.free()})
            for part in self.parts
        )


def parse(label: str) -> Spec:
    """Return the spec that ``label`` spells, or raise with the nearest spelling."""
    if recipe.is_path(label):
        return parse("+".join(spelled(slug, own) for slug, own in recipe.read(label).entries))
    parts = []
    for text in label.split("+"):
        slug, colon, rest = text.partition(":")
        given = re.split(r":(?=\s*\w+\s*=)", rest) if colon else []
        part = Part(catalogue.get(slug.strip()), parse_params(piece.strip() for piece in given))
        part.factory(**part.own)
        parts.append(part)
    return Spec(label.replace(" ", ""), tuple(parts))


def spelled(slug: str, own: Mapping[str, Any]) -> str:
    """Return a method with its parameters as text that `parse` reads back."""
    return ":".join([slug, *(f"{name}={value!r}".replace(" ", "") for name, value in own.items())])


def parse_params(given: Iterable[str]) -> dict[str, Any]:
    """Return ``name=value`` texts as parameters: numbers, booleans, None and tuples are read, all else is text."""
    params = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip().isidentifier():
            raise BadInput(f"param={text!r} is not of the form name=value.")
        try:
            params[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            params[name.strip()] = value
    return params


def split(text: str) -> list[str]:
    """Return the parts of ``text`` between commas that stand outside brackets."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def collect(labels: Iterable[str], params: dict[str, Any]) -> list[Spec]:
    """Return the specs for ``labels``, each once; every one of ``params`` must be of use to one of them."""
    found = {spec.label: spec for spec in map(parse, labels)}
    if not found:
        raise BadInput("methods is empty: give a slug such as 'snapkv'.")
    known = set().union(*(spec.free for spec in found.values()))
    for name in params:
        if name not in known:
            raise BadInput(
                f"{', '.join(found)}: no parameter {name!r}.{nearest(name, known)} "
                f"Possible: {', '.join(sorted(known)) or 'none'}."
            )
    return list(found.values())


def serving(kind: HostKind) -> list[str]:
    """Return the slugs of all methods for models of ``kind`` that change what they compute."""
    return [
        slug
        for slug, factory in catalogue.factories().items()
        if kind in factory.card.hosts and factory.card.saving != "none"
    ]


def baselines(specs: Iterable[Spec], kind: HostKind) -> list[Spec]:
    """Return what each family's methods must beat: those of the family that are true by definition, not by a paper."""
    families = set().union(*(spec.families for spec in specs))
    return [
        Spec(slug, (Part(factory),))
        for slug, factory in catalogue.factories().items()
        if factory.card.fidelity == "definition" and factory.card.family in families and kind in factory.card.hosts
    ]


def parse_keep(text: str) -> Keep:
    """Return a budget from text: with a dot a fraction in (0, 1], without one a count of tokens, with a unit bytes."""
    if text.strip()[-1:].isalpha():
        return check_keep(text.strip())
    try:
        value: Keep = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise BadInput(
            f"keep={text!r} is not a number; give a fraction such as 0.25, a count such as 64, or bytes such as 256MB."
        ) from error
    return check_keep(value)
