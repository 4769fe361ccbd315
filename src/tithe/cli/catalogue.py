"""``tithe list`` and ``tithe show``: what is in the catalogue."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from tithe.cli.console import console, emit
from tithe.cli.options import Json
from tithe.errors import unknown

if TYPE_CHECKING:
    from tithe.types import Card

Slug = Annotated[str, typer.Argument(help="A method, as tithe list names it.")]
Family = Annotated[str | None, typer.Option(help="Only methods of this family.")]
Host = Annotated[str | None, typer.Option(help="Only methods for this kind of model: llm, vlm or vit.")]


def row(card: Card, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return a card and the parameters' defaults as plain types."""
    return {
        "slug": card.slug,
        "title": card.title,
        "family": card.family,
        "year": card.year,
        "arxiv": card.arxiv,
        "code": card.code,
        "fidelity": card.fidelity,
        "saving": card.saving,
        "hosts": list(card.hosts),
        "params": {name: parameter.default for name, parameter in parameters.items()},
    }


def list_methods(family: Family = None, host: Host = None, json: Json = False) -> None:
    """List every method of the catalogue."""
    from tithe.catalogue import factories, measures, modules
    from tithe.types import HostKind

    rows = [row(factory.card, factory.parameters) for factory in factories().values()]
    rows += [row(card, {}) for card, _ in (*modules().values(), *measures().values())]
    families = {one["family"] for one in rows}
    if family is not None and family not in families:
        raise unknown("family", family, families)
    if host is not None and host not in get_args(HostKind):
        raise unknown("host", host, get_args(HostKind))
    rows = [one for one in rows if family in (None, one["family"]) and (host is None or host in one["hosts"])]
    if json:
        emit({"methods": rows})
        return
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("method", "family", "models", "year", "fidelity", "saving", "title"):
        table.add_column(name, no_wrap=True, ratio=1 if name == "title" else None)
    for one in rows:
        models = " ".join(one["hosts"]) or ("all" if one["family"] == "measure" else "its own")
        told = (one["slug"], one["family"], models, str(one["year"]), one["fidelity"], one["saving"])
        table.add_row(*told, one["title"])
    console(False).print(table)


def show(slug: Slug, json: Json = False) -> None:
    """Show one method: its paper, what it does, its parameters and where it departs from the authors' code."""
    from tithe.catalogue import get, measures, modules

    own = modules().get(slug) or measures().get(slug)
    card, module = own or (get(slug).card, inspect.getmodule(get(slug).build))
    notes = inspect.cleandoc((module.__doc__ if module else None) or "")
    one, screen = row(card, {} if own else get(slug).parameters), console(False)
    if json:
        emit({**one, "mechanism": card.mechanism, "notes": notes})
        return
    screen.print(f"[bold]{one['slug']}[/]  {one['title']} ({one['year']})", highlight=False)
    screen.print(card.mechanism, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("family", one["family"])
    table.add_row("models", " ".join(one["hosts"]) or _where(card, module))
    table.add_row("fidelity", one["fidelity"])
    table.add_row("saving", one["saving"])
    table.add_row("paper", f"https://arxiv.org/abs/{one['arxiv']}" if one["arxiv"] else "none")
    table.add_row("code", f"https://github.com/{one['code']}" if one["code"] else "none")
    for name, default in one["params"].items():
        table.add_row(name, repr(default))
    screen.print(table)
    screen.print(notes, markup=False, highlight=False)


def _where(card: Card, module: ModuleType | None) -> str:
    place = module.__name__ if module else "nowhere"
    return f"all, by {place}" if card.family == "measure" else f"its own, built from {place}"
