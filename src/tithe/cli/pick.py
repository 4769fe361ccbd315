"""``tithe pick``: which method, at which budget, is worth it on this model and this work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tithe.cli.bench import Data, Kept, Page, Seed, Where, opened, typed
from tithe.cli.console import bars, console, emit
from tithe.cli.inputs import writable
from tithe.cli.options import Device, Dtype, Json, Model, Trust
from tithe.cli.spread import Gpus, Ray, Workers, pool
from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe.pick import Picked

Task = Annotated[str, typer.Option("--task", "-t", help="The work to choose for.")]
Drop = Annotated[float, typer.Option(help="The drop of quality that is allowed, on the task's scale.")]
Bytes = Annotated[str | None, typer.Option(help="The cache that may be held when an answer ends, such as 256MB.")]
Prefill = Annotated[float | None, typer.Option(help="The time of reading allowed, over the untouched model's.")]
Decode = Annotated[float | None, typer.Option(help="The time of a written token allowed, over the untouched model's.")]
Least = Annotated[str | None, typer.Option(help="What is to be small: kv, flops, prefill or decode.")]
Methods = Annotated[str, typer.Option("--methods", help="Slugs by comma to choose from; all that fit by default.")]
Keeps = Annotated[str, typer.Option("--keep", "-k", help="Budgets by comma to choose from.")]
Count = Annotated[int, typer.Option("--n", "-n", help="Cases of the last rung, and as many fresh ones.")]
Length = Annotated[int, typer.Option(help="Tokens of a text task's context.")]
Trials = Annotated[int | None, typer.Option(help="Stop after so many trials.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so many minutes.")]
Yaml = Annotated[Path, typer.Option("--yaml", help="Where the choice is written.")]


def pick(
    model: Model = "zoo:llm",
    task: Task = "",
    data: Data = None,
    max_drop: Drop = 0.01,
    max_kv: Bytes = None,
    max_prefill_ratio: Prefill = None,
    max_decode_ratio: Decode = None,
    minimise: Least = None,
    methods: Methods = "",
    keep: Keeps = "0.75,0.5,0.35,0.25,0.15,0.1,0.05",
    question: Where = "inside",
    n: Count = 48,
    seed: Seed = 0,
    length: Length = 512,
    trials: Trials = None,
    minutes: Minutes = None,
    journal: Kept = "tithe-journal.sqlite",
    yaml: Yaml = Path("tithe.yaml"),
    out: Page = None,
    ray: Ray = None,
    ray_workers: Workers = None,
    ray_gpus: Gpus = 0.0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Choose the cheapest method, budget and parameters whose drop of quality you allow, and write tithe.yaml."""
    from tithe.bench import parse_keep
    from tithe.bench.cluster import Source
    from tithe.bench.runner import check
    from tithe.bench.specs import split
    from tithe.bench.tasks.base import Setting
    from tithe.budget import parse_bytes
    from tithe.cli.bench import asked
    from tithe.pick import Constraints, Limits
    from tithe.pick import pick as search
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    limits = Limits(trials, minutes)
    constraints = Constraints(
        max_drop, None if max_kv is None else parse_bytes(max_kv, "max_kv"), max_prefill_ratio, max_decode_ratio
    )
    keeps = tuple(parse_keep(text) for text in split(keep))
    names = split(task)
    if len(names) + (data is not None) > 1:
        raise BadInput("task and data: give one task, or one file, to choose for.")
    check(names, split(methods), keeps, question, n, seed, [length], 1, 0, {})
    targets = [writable(path) for path in (yaml, out) if path is not None]
    todo = asked(names, data, None)
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    (chosen,) = _one(todo, loaded.kind, model)
    source = Source(model, dtype, device, trust_remote_code)
    with pool(ray, source, ray_workers, ray_gpus) as where, opened(journal) as held, bars() as shown, quiet():
        found = search(
            loaded,
            chosen,
            constraints,
            name=model,
            methods=split(methods),
            keeps=keeps,
            setting=Setting(n, seed, question, length),  # type: ignore[arg-type]
            minimise=minimise,
            limits=limits,
            journal=held,
            pool=where,
            progress=shown.bar(model),
            command=typed(),
        )
    target = found.recipe().write(targets[0])
    show(found, json)
    typer.echo(f"wrote {target}", err=True)
    if out is not None:
        from tithe.cli.report import picked
        from tithe.page import write

        write(picked(f"{model}: {chosen.name}", found), targets[1])
        typer.echo(f"wrote {targets[1]}", err=True)
    if json:
        emit(plain(found) | {"yaml": str(target)})


def show(found: Picked, json: bool) -> None:
    """Print the front, the winner with its interval, and the runner-up."""
    from tithe.cli.tables import fronts
    from tithe.pick.constraints import COSTS, cost, drop

    screen = console(json)
    screen.print(fronts(found))
    row = found.told
    told = f"{row.n} fresh cases" if found.fresh is not None else f"the {row.n} cases that chose it"
    between = "" if row.low is None or row.high is None else f" (95%: {0 - row.high:.3f} to {0 - row.low:.3f})"
    sure = "" if found.sure else f"; the interval reaches beyond {found.constraints.max_drop:g}"
    if not found.sure and row.needed is not None:
        sure += f", about {row.needed:,} cases would tell"
    lines = [
        f"winner: {found.winner.candidate}: drop {drop(row):.3f}{between} on {told}, "
        f"{cost(found.winner.row, found.cost):.3f} of the {COSTS[found.cost]}{sure}",
    ]
    if found.runner_up is not None:
        other = found.runner_up
        lines.append(
            f"runner-up: {other.candidate}: drop {drop(other.row):.3f}, {cost(other.row, found.cost):.3f} "
            f"of the {COSTS[found.cost]}"
        )
    lines.append(f"{len(found.trials)} trials" + (f", stopped early: {found.stopped}" if found.stopped else ""))
    for line in lines:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)


def plain(found: Picked) -> dict[str, Any]:
    """Return what was found as plain types for JSON."""
    return {
        "winner": {"method": str(found.winner.candidate), "row": found.winner.row.to_dict()},
        "fresh": None if found.fresh is None else found.fresh.to_dict(),
        "sure": found.sure,
        "runner_up": None if found.runner_up is None else str(found.runner_up.candidate),
        "front": [one.row.to_dict() for one in found.front],
        "trials": [{"rung": one.rung, **one.row.to_dict()} for one in found.trials],
        "stopped": found.stopped,
    }


def _one(todo: list[Any], kind: Any, model: str) -> list[Any]:
    from tithe.bench import registry

    found = registry.check(todo or list(registry.default(kind, model))[:1], kind, model)
    if not found:
        raise BadInput(f"task is empty, and there is none for {model}: give --data and your own cases.")
    return found
