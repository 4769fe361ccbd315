"""``tithe bench``: methods x budgets x tasks."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tithe.cli.console import bars, console, emit
from tithe.cli.inputs import writable
from tithe.cli.options import Device, Dtype, Json, Keeps, Model, Param, Trust
from tithe.cli.spread import Gpus, Ray, Workers, pool
from tithe.errors import BadInput, TitheError

if TYPE_CHECKING:
    from rich.console import Console

    from tithe.bench import Result
    from tithe.bench.journal import Journal
    from tithe.bench.tasks.base import Task
    from tithe.budget import Keep
    from tithe.zoo import Loaded

Tasks = Annotated[
    str, typer.Option("--task", "-t", help="Tasks by comma; by default all that fit the model, but for writing.")
]
Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        help="Slugs by comma, all that fit by default; a+b act together; slug:name=value has parameters of its own.",
    ),
]
Where = Annotated[str, typer.Option("--question", help="Ask inside the prompt, or after its compression.")]
Count = Annotated[int, typer.Option("--n", "-n", help="Cases of each task.")]
Seed = Annotated[int, typer.Option(help="Which cases are drawn.")]
Lengths = Annotated[str, typer.Option("--length", help="Tokens of a text task's context; several by comma.")]
Repeat = Annotated[int, typer.Option(help="How many seeds, counted up from --seed; a row is over all of them.")]
Timings = Annotated[int, typer.Option(help="Pairs of timings behind each ratio; 0 for no timings.")]
Kept = Annotated[
    str,
    typer.Option("--journal", help="Where every case is kept, so that the same command goes on; 'none' keeps nothing."),
]
Data = Annotated[Path | None, typer.Option("--data", "-d", help="Your own cases: a file with a line of JSON each.")]
Metric = Annotated[
    str | None,
    typer.Option(
        help="How --data is marked: exact, begins, contains, f1, choice or likelihood; a line may say its own."
    ),
]
Page = Annotated[Path | None, typer.Option("--out", "-o", help="Also write a page of the results, one HTML file.")]
Attack = Annotated[str, typer.Option("--attack", help="caa: change pictures so that what matters is dropped.")]
Epsilon = Annotated[float, typer.Option(help="The largest change of a pixel under attack, of a range of 1.")]
Bare = Annotated[bool, typer.Option("--no-baselines", help="Leave out random, uniform and the like.")]


def bench(
    model: Model = "zoo:llm",
    task: Tasks = "",
    data: Data = None,
    metric: Metric = None,
    methods: Methods = "",
    keep: Keeps = "0.5,0.25,0.1",
    question: Where = "inside",
    n: Count = 16,
    seed: Seed = 0,
    length: Lengths = "512",
    repeat: Repeat = 1,
    timings: Timings = 3,
    param: Param = None,
    journal: Kept = "tithe-journal.sqlite",
    out: Page = None,
    ray: Ray = None,
    ray_workers: Workers = None,
    ray_gpus: Gpus = 0.0,
    no_baselines: Bare = False,
    attack: Attack = "",
    epsilon: Epsilon = 8 / 255,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Measure methods at several budgets beside the untouched model and the baselines."""
    from tithe.bench import parse_keep, registry, run
    from tithe.bench.cluster import Source
    from tithe.bench.runner import check
    from tithe.bench.specs import parse_params, split
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    tasks, chosen, keeps = split(task), split(methods), [parse_keep(text) for text in split(keep)]
    params, lengths = parse_params(param or []), numbers("length", length)
    check(tasks, chosen, keeps, question, n, seed, lengths, repeat, timings, params)
    target = writable(out) if out is not None else None
    wanted = asked(tasks, data, metric)
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    todo = registry.check(wanted, loaded.kind, model)
    if attack:
        return attacked(loaded, model, todo, chosen, keeps, params, (attack, epsilon, n, seed, json))
    source = Source(model, dtype, device, trust_remote_code)
    with pool(ray, source, ray_workers, ray_gpus) as where, opened(journal) as held, bars() as shown, quiet():
        result = run(
            loaded,
            todo,
            chosen,
            keeps,
            n=n,
            seed=seed,
            question=question,  # type: ignore[arg-type]
            length=lengths,
            repeat=repeat,
            timings=timings,
            baselines=not no_baselines,
            params=params,
            name=model,
            progress=shown.bar(model),
            journal=held,
            pool=where,
            command=typed(),
        )
    seeds = f"seed {seed}" if repeat == 1 else f"seeds {seed} to {seed + repeat - 1}"
    cases = max((row.n for row in result.rows), default=0) // repeat
    show(console(json), result, f"{model}, {cases} cases, {seeds}")
    if target is not None:
        from tithe.bench import specs
        from tithe.cli.report import report
        from tithe.page import write

        labels = dict.fromkeys(row.method for row in result.rows if row.method != specs.UNTOUCHED)
        write(
            report(
                f"{model}: {', '.join(dict.fromkeys(row.task for row in result.rows))}",
                map(specs.parse, labels),
                rows=result.rows,
            ),
            target,
        )
        typer.echo(f"wrote {target}", err=True)
    if json:
        emit(result.to_dict())
    if result.refused:
        raise typer.Exit(1)
    return None


def show(screen: Console, result: Result, title: str) -> None:
    """Print the tables of a result."""
    from tithe.bench import losers
    from tithe.cli.tables import differences, limits, losing, refusals, results
    from tithe.cli.tables import split as split_times

    screen.print(results(result.rows, title))
    for table in (split_times(result.rows), differences(result.rows), limits(result.rows)):
        if table is not None:
            screen.print(table)
    for line in (*losing(losers(result.rows)), *refusals(result.refused)):
        screen.print(line, markup=False, highlight=False)


def asked(tasks: Sequence[str], data: Path | None, metric: str | None) -> list[str | Task]:
    """Return the tasks by name, and that of a user's own cases behind them."""
    if metric is not None and data is None:
        raise BadInput(f"metric={metric!r} was given without data: give --data and a file of your own cases.")
    if data is None:
        return list(tasks)
    from tithe.bench.tasks.own import load

    return [*tasks, load(data, metric=metric)]


def numbers(name: str, text: str) -> list[int]:
    """Return the whole numbers between commas."""
    from tithe.bench.specs import split

    try:
        return [int(part) for part in split(text)]
    except ValueError as error:
        raise BadInput(f"{name}={text!r}: give whole numbers by comma, such as 256,512.") from error


def typed() -> str:
    """Return the command as it was typed, so that a run can be told by it."""
    return shlex.join(["tithe", *sys.argv[1:]])


@contextmanager
def opened(journal: str) -> Iterator[Journal]:
    """Open a journal; a run that is stopped says where its cases are, one that is refused whole leaves no new file."""
    from tithe.bench.journal import Journal

    path = None if journal == "none" else Path(journal).expanduser()
    fresh = path is not None and not path.exists()
    with Journal(path) as held:
        try:
            yield held
        except TitheError:
            if path is not None and fresh:
                held.close()
                path.unlink()
            raise
        except KeyboardInterrupt as stop:
            where = "" if journal == "none" else f"; what was found is in {journal}: the same command goes on"
            typer.echo(f"tithe: stopped{where}.", err=True)
            raise typer.Exit(130) from stop


def attacked(
    loaded: Loaded,
    model: str,
    todo: Sequence[Any],
    chosen: list[str],
    keeps: list[Keep],
    params: dict[str, Any],
    how: tuple[str, float, int, int, bool],
) -> None:
    """Print what a perturbation of the pictures does to methods, and to the untouched model."""
    from tithe.bench import attack, registry
    from tithe.bench.tasks.base import Setting
    from tithe.bench.timing import one_thread_if_small
    from tithe.cli.tables import attacks
    from tithe.zoo.loader import quiet

    name, epsilon, n, seed, json = how
    attack.check(name, epsilon)
    if not chosen:
        raise BadInput("methods is empty: name the methods to attack, such as fastervlm.")
    tasks: Sequence[Any] = todo or registry.check(list(registry.default(loaded.kind, model)), loaded.kind, model)
    rows: list[attack.Attacked] = []
    with quiet(), one_thread_if_small(loaded.model):
        for task in tasks:
            rows += attack.run(
                loaded, task, chosen, keeps, Setting(n, seed), name=model, epsilon=epsilon, params=params
            )
    console(json).print(attacks(rows, f"{model}, {n} cases, seed {seed}, pixels changed by at most {epsilon:.4f}"))
    if json:
        emit({"rows": attack.to_dict(rows)})
