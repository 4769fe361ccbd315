"""``tithe demo``: the embedded models on real input, untouched and under methods, as tables and as a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tithe.cli.console import Bar, bars, console, emit
from tithe.cli.inputs import writable
from tithe.cli.options import Device, Dtype, Json, Out, Trust
from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe.bench import Refusal, Row, Where
    from tithe.bench.specs import Spec
    from tithe.bench.views import Look
    from tithe.budget import Keep
    from tithe.errors import TitheError
    from tithe.page import Case
    from tithe.types import HostKind
    from tithe.zoo import Loaded

Own = Annotated[str | None, typer.Option("--model", "-m", help="Your model instead: a folder or a hub id.")]
Count = Annotated[int, typer.Option("--n", "-n", help="Contexts of each task.")]

KEEPS = (0.5, 0.25, 0.1)
SEED, STEPS = 1, 8
METHODS: dict[HostKind, tuple[str, ...]] = {
    "llm": ("snapkv", "adakv", "pyramidkv", "h2o", "streaming-llm"),
    "vlm": ("fastervlm", "hiprune", "visionzip", "fastv"),
    "vit": ("tome", "ats:points=0.5", "ats:points=0.25"),
}
SCENES = ("visionzip", "holitom", "pyramiddrop")
TASK: dict[HostKind, str] = {"llm": "multikey", "vlm": "vqa", "vit": "digits"}
EACH: dict[HostKind, int] = {"llm": 1, "vlm": 6, "vit": 8}
WHERES: dict[HostKind, tuple[Where, ...]] = {"llm": ("inside", "after"), "vlm": ("inside", "after"), "vit": ("inside",)}


@dataclass(frozen=True)
class Part:
    """What the demonstration found on one model."""

    name: str
    specs: list[Spec]
    rows: list[Row]
    refused: list[Refusal]
    cases: list[Case]


def demo(
    model: Own = None,
    out: Out = Path("tithe-report.html"),
    n: Count = 4,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Run the embedded models (or yours) on a real document and a real picture, and write the report."""
    from tithe import page
    from tithe.cli.report import report
    from tithe.cli.tables import refusals, results
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    target = writable(out)
    names = [model] if model is not None else ["zoo:llm", "zoo:vlm", "zoo:vit"]
    screen, parts = console(json), []
    for name in names:
        loaded = load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if loaded.kind not in TASK:
            raise BadInput(f"model={name!r} is a {loaded.kind}; the demo has tasks for {', '.join(TASK)}.")
        with bars() as shown, quiet():
            part = look(loaded, name, n * EACH[loaded.kind], shown.bar)
        parts.append(part)
        asked = part.rows[0].n
        screen.print()
        screen.print(results(part.rows, f"{name}: {TASK[loaded.kind]}, {asked} cases, seed {SEED}"))
        for line in refusals(part.refused):
            screen.print(line, markup=False, highlight=False)
    if model is None:
        scenes = load_model("zoo:scenes", dtype=dtype, device=device)
        with bars() as shown, quiet():
            parts.append(gallery(scenes, "zoo:scenes", shown.bar("zoo:scenes · page")))
    rows = [row for part in parts for row in part.rows]
    data = report(
        "What a model needs to read",
        [spec for part in parts for spec in part.specs],
        cases=[case for part in parts for case in part.cases],
        rows=rows,
    )
    written = page.write(data, target)
    screen.print(f"\nwrote {written}", markup=False, highlight=False)
    refused = [one for part in parts for one in part.refused]
    if json:
        emit(
            {
                "rows": [row.to_dict() for row in rows],
                "refused": [asdict(one) for one in refused],
                "report": str(written),
            }
        )
    if refused:
        raise typer.Exit(1)


def look(loaded: Loaded, name: str, n: int, bar: Callable[[str], Bar]) -> Part:
    """Measure the methods on ``n`` cases, and look at the first of them token by token."""
    from tithe import bench
    from tithe.bench import specs, views
    from tithe.bench.timing import one_thread_if_small

    kind = loaded.kind
    rows: list[bench.Row] = []
    refused: list[bench.Refusal] = []
    for where in WHERES[kind]:
        result = bench.run(
            loaded,
            [TASK[kind]],
            METHODS[kind],
            KEEPS,
            n=n,
            seed=SEED,
            steps=STEPS,
            question=where,
            name=name,
            progress=bar(f"{name} · question {where}" if kind != "vit" else name),
        )
        rows += result.rows
        refused += result.refused
    chosen = specs.collect(METHODS[kind], {})
    chosen += specs.baselines(chosen, kind)
    asked = [(spec, keep) for spec in chosen for keep in spec.budgets(KEEPS)]
    watched = bar(f"{name} · page")
    total, steps = len(asked) * len(WHERES[kind]), iter(range(len(asked) * len(WHERES[kind])))
    each = views.Look(asked, before=lambda label: watched(next(steps), total, label), refuse=_noted)
    with one_thread_if_small(loaded.model):
        cases = [_case(loaded, name, where, each) for where in WHERES[kind]]
    watched(total, total, "done")
    return Part(name, chosen, rows, refused, cases)


def gallery(loaded: Loaded, name: str, bar: Bar) -> Part:
    """Look at a page in several crops and at a clip of frames, patch by patch."""
    from PIL import Image

    from tithe.bench import specs, views
    from tithe.bench.tasks import pictures, scenes
    from tithe.bench.timing import one_thread_if_small

    chosen = specs.collect(SCENES, {})
    asked = [(spec, keep) for spec in chosen for keep in spec.budgets(KEEPS)]
    forms = [scenes.ASKED_OF[form] for form in ("strewn", "clip")]
    total, steps = len(asked) * len(forms), iter(range(len(asked) * len(forms)))
    each = views.Look(asked, before=lambda label: bar(next(steps), total, label), refuse=_noted)
    cases: list[Case] = []
    with one_thread_if_small(loaded.model):
        for kinds in forms:
            case = scenes.case(SEED, "test", kinds)
            prompt, images = pictures.composed(loaded, case), [Image.fromarray(image) for image in case.scene.images]
            cases.append(views.image_case(loaded, name, images, prompt, "inside", each))
    bar(total, total, "done")
    return Part(name, chosen, [], [], cases)


def _case(loaded: Loaded, name: str, where: Where, each: Look) -> Case:
    from PIL import Image

    from tithe.bench import views
    from tithe.bench.prompt import compose
    from tithe.bench.tasks import canvas
    from tithe.bench.tasks.base import Setting
    from tithe.bench.tasks.needle import MULTIKEY
    from tithe.bench.tasks.vision import VQA, named

    setting = Setting(1, SEED, where)
    first = setting.seeds().start
    if loaded.kind == "vit":
        drawn = canvas.digits_case(first, "test")
        picture = Image.fromarray(drawn.image)
        truth = named(loaded.model, drawn.labels.tolist())
        return views.image_case(loaded, name, [picture], compose(loaded, image=picture), where, each, truth)
    if loaded.kind == "llm":
        case: Case = views.text_case(loaded, name, next(MULTIKEY.prompts(loaded, setting)), where, each)
    else:
        picture = Image.fromarray(canvas.vqa_case(first, "test").image)
        case = views.image_case(loaded, name, [picture], next(VQA.prompts(loaded, setting)), where, each)
    place = "inside the prompt" if where == "inside" else "after compression"
    return replace(case, question=f"{case.question} (asked {place})")


def _noted(spec: Spec, keep: Keep | None, error: TitheError) -> None:
    """What cannot be served is among the benchmark's refusals already."""
