"""Commands under one name; whatever Tithe refuses becomes one line on stderr and exit code 2."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from tithe.cli import bench, catalogue, compare, demo, encode, inspect, pick, profile, run, shorten
from tithe.cli.console import one_line
from tithe.cli.spread import Spreading
from tithe.errors import TitheError


class Group(TyperGroup):
    """A group that knows Tithe's errors."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except TitheError as error:
            typer.echo(f"tithe: {one_line(error)}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="tithe",
    cls=Group,
    help="Find the tokens that matter, and make a transformer pay only for those.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("list")(catalogue.list_methods)
app.command("show")(catalogue.show)
app.command("run")(run.run)
app.command("inspect")(inspect.inspect)
app.command("bench", cls=Spreading)(bench.bench)
app.command("compare")(compare.compare)
app.command("pick", cls=Spreading)(pick.pick)
app.command("shorten")(shorten.shorten)
app.command("encode-images")(encode.encode_images)
app.command("profile")(profile.profile)


def main() -> None:
    """Run the command line."""
    app()
