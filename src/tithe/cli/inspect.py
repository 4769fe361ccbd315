"""``tithe inspect``: the page for one input."""

from __future__ import annotations

from pathlib import Path

from tithe.cli.console import bars, console, emit
from tithe.cli.inputs import Chosen, Frames, Given, Pictures, Video, writable
from tithe.cli.options import (
    After,
    Device,
    Dtype,
    File,
    Json,
    Keeps,
    Methods,
    Out,
    Param,
    Question,
    Room,
    Text,
    Trust,
)


def inspect(
    model: Chosen = None,
    methods: Methods = "",
    keep: Keeps = "0.5,0.25,0.1",
    prompt: Text = None,
    file: File = None,
    image: Pictures = None,
    video: Video = None,
    frames: Frames = None,
    question: Question = "",
    after: After = False,
    max_new_tokens: Room = 32,
    param: Param = None,
    out: Out = Path("tithe-inspect.html"),
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Write a page that shows which tokens of your input each method keeps, by layer and budget."""
    from tithe import page
    from tithe.bench import specs, views, visual
    from tithe.cli.report import report
    from tithe.errors import BadInput
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    params, keeps = specs.parse_params(param or []), [specs.parse_keep(text) for text in specs.split(keep)]
    chosen = specs.collect(specs.split(methods), params)
    asked = [(spec, budget) for spec in chosen for budget in spec.budgets(keeps)]
    for spec, budget in asked:
        spec.methods(budget, params)
    given = Given.read(prompt, file, image, question, after, max_new_tokens, video, frames)
    model, target = model or given.model, writable(out)
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with bars() as shown, quiet():
        bar, done = shown.bar(model), iter(range(len(asked)))
        look = views.Look(asked, params, before=lambda label: bar(next(done), len(asked), label))
        made = given.prompt(loaded)
        shown_to_it = given.shown
        for spec, budget in asked:
            visual.check_seen(loaded, spec.methods(budget, params), made.inputs)
        case: page.TextCase | page.ImageCase
        if shown_to_it:
            case = views.image_case(loaded, model, shown_to_it, made, given.where, look)
        elif loaded.kind == "llm":
            case = views.text_case(loaded, model, made, given.where, look)
        elif loaded.kind == "ssm":
            raise BadInput(f"model={model!r} is a ssm, which chooses by channel; the page shows choices by token.")
        else:
            raise BadInput("image is missing: the page shows a picture for this model.")
        bar(len(asked), len(asked), "done")
    written = page.write(report(f"tithe inspect {model}", chosen, cases=(case,)), target)
    if json:
        emit(
            {
                "report": str(written),
                "model": model,
                "answer_untouched": case.untouched_answer,
                "views": [{"method": view.method, "keep": view.keep, "answer": view.answer} for view in case.views],
            }
        )
        return
    console(False).print(f"wrote {written}", markup=False, highlight=False)
