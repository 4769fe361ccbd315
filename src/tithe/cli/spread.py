"""Where a command does its work: here, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe.bench.cluster import Source
    from tithe.bench.runner import Pool

RAY = "--ray"
Ray = Annotated[
    str | None,
    typer.Option(
        RAY,
        metavar="[ADDRESS]",
        help="Spread the cases over Ray: on this machine, or at HOST:PORT, ray://HOST:PORT, auto.",
        show_default=False,
    ),
]
Workers = Annotated[int | None, typer.Option("--ray-workers", help="Cases at once where --ray is this machine.")]
Gpus = Annotated[float, typer.Option("--ray-gpus", help="GPUs for each case on the cluster, such as 1 or 0.5.")]


class Spreading(TyperCommand):
    """A command whose ``--ray`` may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Fill in the address that was left out."""
        return super().parse_args(ctx, _filled(args))


@contextmanager
def pool(ray: str | None, source: Source, workers: int | None, gpus: float) -> Iterator[Pool]:
    """Give the place of work; a cluster is let go of at the end."""
    from tithe.bench.runner import local

    if ray is None:
        if workers is not None or gpus:
            raise BadInput("ray_workers and ray_gpus are for a cluster: give --ray.")
        yield local
        return
    if workers is not None and workers < 1:
        raise BadInput(f"ray_workers={workers} is out of range; give at least 1.")
    if gpus < 0:
        raise BadInput(f"ray_gpus={gpus} is out of range; give 0 or more.")
    from tithe.bench.cluster import Cluster

    with Cluster(source, ray, workers, gpus=gpus) as cluster:
        yield cluster


def _filled(args: Sequence[str]) -> list[str]:
    out = []
    for at, word in enumerate(args):
        out.append(word)
        if word == RAY and (at + 1 == len(args) or args[at + 1].startswith("-")):
            out.append("local")
    return out
