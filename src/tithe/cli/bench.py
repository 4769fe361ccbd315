"""``tithe bench``: methods x budgets x tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from tithe.cli.console import bars, console, emit
from tithe.cli.options import Device, Dtype, Json, Keeps, Model, Param, Trust

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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Measure methods at several budgets beside the untouched model and the baselines."""
    from tithe.bench import parse_keep, registry, run
    from tithe.bench.runner import check
    from tithe.bench.specs import parse_params, split
    from tithe.cli.tables import refusals, results
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    tasks, chosen, keeps = split(task), split(methods), [parse_keep(text) for text in split(keep)]
    params = parse_params(param or [])
    check(tasks, chosen, keeps, question, n, seed, length, repeat, params)
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    registry.check(tasks, loaded.kind, model)
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
    for line in refusals(result.refused):
        screen.print(line, markup=False, highlight=False)
    if json:
        emit(result.to_dict())
    if result.refused:
        raise typer.Exit(1)
