"""``tithe run``: one model, one input, one method or several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tithe.cli.console import console, emit
from tithe.cli.inputs import Chosen, Frames, Given, Pictures, Video
from tithe.cli.options import (
    After,
    Device,
    Dtype,
    File,
    Json,
    Param,
    Question,
    Room,
    Text,
    Trust,
)
from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe import types
    from tithe.bench.ask import Attach
    from tithe.flow import Run
    from tithe.zoo import Loaded

Method = Annotated[list[str] | None, typer.Option("--method", help="A slug; several act together, in order.")]
Keep = Annotated[str | None, typer.Option("--keep", "-k", help="Budget: with a dot a fraction, without one a count.")]


def run(
    model: Chosen = None,
    method: Method = None,
    keep: Keep = None,
    prompt: Text = None,
    file: File = None,
    image: Pictures = None,
    video: Video = None,
    frames: Frames = None,
    question: Question = "",
    after: After = False,
    max_new_tokens: Room = 32,
    param: Param = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Run your own input under methods, and print the answer beside the untouched model's and what was saved."""
    from tithe.bench import specs
    from tithe.flow import on
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    if not method:
        raise BadInput("method is empty: give --method and a slug such as 'snapkv'; tithe list names them all.")
    params, budget = specs.parse_params(param or []), None if keep is None else specs.parse_keep(keep)
    given_params = params if budget is None else {**params, "keep": budget}
    (spec,) = specs.collect(["+".join(method)], given_params)
    methods = spec.methods(None, given_params)
    given = Given.read(prompt, file, image, question, after, max_new_tokens, video, frames)
    model = model or given.model
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    runs: list[Run] = []

    def attach() -> Run:
        runs.append(on(loaded.model, methods))
        return runs[-1]

    with quiet():
        answers, tokens = _answers(loaded, given, methods, attach)
    report = runs[-1].report()
    payload: dict[str, Any] = {
        "model": model,
        "kind": loaded.kind,
        "methods": list(report.methods),
        "keep": budget,
        "question": given.where if question else None,
        "prompt_tokens": tokens,
        "answer": answers[1],
        "answer_untouched": answers[0],
        "report": report.to_dict(),
    }
    if json:
        emit(payload)
        return
    screen = console(False)
    screen.print(f"untouched: {answers[0]}", markup=False, highlight=False)
    screen.print(f"{spec.label}: {answers[1]}", markup=False, highlight=False)
    screen.print(str(report), markup=False, highlight=False)


def _answers(
    loaded: Loaded, given: Given, methods: Sequence[types.Method], attach: Attach
) -> tuple[tuple[str, str], int | None]:
    """Return the answers untouched and under the methods, and the tokens of the prompt."""
    from tithe.bench.ask import untouched
    from tithe.bench.views import classified, written
    from tithe.bench.visual import check_seen

    prompt = given.prompt(loaded)
    check_seen(loaded, methods, prompt.inputs)
    if loaded.kind == "vit":
        return (
            classified(loaded.model, prompt.inputs, untouched),
            classified(loaded.model, prompt.inputs, attach),
        ), None
    tokens = prompt.inputs["input_ids"].shape[1] + len(prompt.asks[0].ids)
    first = written(loaded, prompt, given.where, untouched)
    return (first, written(loaded, prompt, given.where, attach)), tokens
