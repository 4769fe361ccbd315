"""Methods by slug, generated from their cards: whatever lies in ``methods/`` is in the catalogue."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec

from tithe import recipe
from tithe.errors import BadInput, TitheError, nearest, unknown
from tithe.modes import MODES, applied
from tithe.types import Card, Fidelity, HostKind, Method, Saving, Step

MethodLike = str | Path | Method

P = ParamSpec("P")
Steps = Step | tuple[Step, ...]


@dataclass(frozen=True)
class Factory:
    """A method before its parameters are given: calling it makes the ``Method``."""

    card: Card
    build: Callable[..., Steps]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters with their defaults, in order."""
        return dict(inspect.signature(self.build).parameters)

    def __call__(self, **params: Any) -> Method:
        """Make the method; parameters are stored unchanged, defaults filled in."""
        slug, known = self.card.slug, self.parameters
        for name in params:
            if name not in known and name not in MODES:
                raise BadInput(
                    f"{slug} has no parameter {name!r}.{nearest(name, (*known, *MODES))} "
                    f"Possible: {', '.join((*known, *MODES))}."
                )
        full = {name: params.get(name, parameter.default) for name, parameter in known.items()}
        with fitting(slug, params):
            steps = self.build(**full)
            method = Method(self.card, full, steps if isinstance(steps, tuple) else (steps,))
            return applied(method, {name: value for name, value in params.items() if name not in known})


@contextmanager
def fitting(slug: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Turn what values of the wrong kind raise inside a method into a refusal that shows them."""
    try:
        yield
    except TitheError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if not params:
            raise
        given = ", ".join(f"{name}={repr(value)[:60]}" for name, value in params.items())
        told = " ".join(str(error).split())
        raise BadInput(f"{slug}: one of {given} is of the wrong kind or out of range: {told}.") from error


def card(
    *,
    slug: str,
    title: str,
    year: int,
    family: str,
    hosts: tuple[HostKind, ...],
    fidelity: Fidelity,
    saving: Saving,
    mechanism: str,
    arxiv: str | None = None,
    code: str | None = None,
) -> Callable[[Callable[P, Steps]], Factory]:
    """Give a method its card; the decorated function takes the parameters and returns the steps."""
    row = Card(slug, title, year, arxiv, code, family, hosts, fidelity, saving, mechanism)
    return lambda build: Factory(row, build)


@cache
def factories() -> dict[str, Factory]:
    """Return every method of the package by slug, in order of slugs."""
    import tithe.methods as root

    found: dict[str, Factory] = {}
    for info in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, Factory):
                found[value.card.slug] = value
    return dict(sorted(found.items()))


def modules() -> dict[str, tuple[Card, ModuleType]]:
    """Return the attention mechanisms that are layers of their own, by slug: their cards and where they stand."""
    import tithe.modules as root

    return _carded(root)


def measures() -> dict[str, tuple[Card, ModuleType]]:
    """Return what tells how good a method is, by slug: tasks, metrics and attacks of papers, and where they stand."""
    import tithe.bench as root

    return _carded(root)


@cache
def _carded(root: ModuleType) -> dict[str, tuple[Card, ModuleType]]:
    found = {}
    for info in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        module = importlib.import_module(info.name)
        mine = getattr(module, "CARD", None)
        if mine is not None:
            found[mine.slug] = (mine, module)
    return dict(sorted(found.items()))


def get(slug: str) -> Factory:
    """Return the method called ``slug``, or raise with the nearest spelling."""
    known = factories()
    if slug in known:
        return known[slug]
    own = modules().get(slug)
    if own is not None:
        raise BadInput(
            f"method={slug!r} is an attention layer of its own, to build and train models from: {own[1].__name__}. It "
            "cannot be attached to a model that was trained without it."
        )
    if slug in measures():
        raise BadInput(
            f"method={slug!r} measures methods and is none: {measures()[slug][1].__name__}; see tithe bench."
        )
    raise unknown("method", slug, known)


def make(slug: str, params: dict[str, Any]) -> Method:
    """Return the method ``slug`` with ``params``."""
    return get(slug)(**params)


def resolve(methods: MethodLike | Sequence[MethodLike], params: dict[str, Any]) -> tuple[Method, ...]:
    """Return ``methods`` as a tuple, those of a ``tithe.yaml`` in its order.

    ``params`` go to every slug that has them, and each must be of use to one.
    """
    listed = [methods] if isinstance(methods, str | Path | Method) else list(methods)
    if not listed:
        raise BadInput("methods is empty: give a slug such as 'snapkv', or a list of methods.")
    made: list[Method] = []
    used: set[str] = set()
    names: set[str] = set()
    for entry in listed:
        if isinstance(entry, Method):
            made.append(entry)
            continue
        if isinstance(entry, Path) or recipe.is_path(entry):
            made += recipe.read(entry).methods()
            continue
        factory = get(entry)
        names |= {*factory.parameters, *MODES}
        mine = {name: value for name, value in params.items() if name in factory.parameters or name in MODES}
        used |= set(mine)
        made.append(factory(**mine))
    for name in params:
        if name not in used:
            slugs = ", ".join(m.card.slug for m in made)
            raise BadInput(
                f"{slugs}: no parameter {name!r}.{nearest(name, names)} Possible: {', '.join(sorted(names)) or 'none'}."
            )
    return tuple(made)
