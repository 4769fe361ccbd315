"""``tithe bench``: methods x budgets x tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tithe.cli.console import bars, console, emit
from tithe.cli.options import Device, Dtype, Json, Keeps, Model, Param, Trust

if TYPE_CHECKING:
    from tithe.budget import Keep
    from tithe.zoo import Loaded

Tasks = Annotated[str, typer.Option("--task", "-t", help="Tasks by comma; all that fit the model by default.")]
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
Length = Annotated[int, typer.Option(help="Tokens of a text task's context.")]
Repeat = Annotated[int, typer.Option(help="Pairs of timings behind each ratio.")]
Attack = Annotated[str, typer.Option("--attack", help="caa: change pictures so that what matters is dropped.")]
Epsilon = Annotated[float, typer.Option(help="The largest change of a pixel under attack, of a range of 1.")]
Bare = Annotated[bool, typer.Option("--no-baselines", help="Leave out random, uniform and the like.")]


def bench(
    model: Model = "zoo:llm",
    task: Tasks = "",
    methods: Methods = "",
    keep: Keeps = "0.5,0.25,0.1",
    question: Where = "inside",
    n: Count = 16,
    seed: Seed = 0,
    length: Length = 512,
    repeat: Repeat = 3,
    param: Param = None,
    no_baselines: Bare = False,
    attack: Attack = "",
    epsilon: Epsilon = 8 / 255,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Measure methods at several budgets beside the untouched model and the baselines."""
    from tithe.bench import losers, parse_keep, registry, run
    from tithe.bench.runner import check
    from tithe.bench.specs import parse_params, split
    from tithe.cli.tables import losing, refusals, results
    from tithe.cli.tables import split as split_times
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    tasks, chosen, keeps = split(task), split(methods), [parse_keep(text) for text in split(keep)]
    params = parse_params(param or [])
    check(tasks, chosen, keeps, question, n, seed, length, repeat, params)
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    todo = registry.check(tasks, loaded.kind, model)
    if attack:
        return attacked(loaded, model, todo, chosen, keeps, params, (attack, epsilon, n, seed, json))
    with bars() as shown, quiet():
        result = run(
            loaded,
            tasks,
            chosen,
            keeps,
            n=n,
            seed=seed,
            question=question,  # type: ignore[arg-type]
            length=length,
            repeat=repeat,
            baselines=not no_baselines,
            params=params,
            name=model,
            progress=shown.bar(model),
        )
    screen = console(json)
    screen.print(results(result.rows, f"{model}, {n} cases, seed {seed}"))
    stages = split_times(result.rows)
    if stages is not None:
        screen.print(stages)
    for line in (*losing(losers(result.rows)), *refusals(result.refused)):
        screen.print(line, markup=False, highlight=False)
    if json:
        emit(result.to_dict())
    if result.refused:
        raise typer.Exit(1)
    return None


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
    from tithe.errors import BadInput
    from tithe.zoo.loader import quiet

    name, epsilon, n, seed, json = how
    attack.check(name, epsilon)
    if not chosen:
        raise BadInput("methods is empty: name the methods to attack, such as fastervlm.")
    tasks: Sequence[Any] = todo or registry.check(list(registry.serving(loaded.kind, model)), loaded.kind, model)
    rows: list[attack.Attacked] = []
    with quiet(), one_thread_if_small(loaded.model):
        for task in tasks:
            rows += attack.run(
                loaded, task, chosen, keeps, Setting(n, seed), name=model, epsilon=epsilon, params=params
            )
    console(json).print(attacks(rows, f"{model}, {n} cases, seed {seed}, pixels changed by at most {epsilon:.4f}"))
    if json:
        emit({"rows": attack.to_dict(rows)})
