"""How far an imperceptible change of a picture moves what a method keeps, and the answer, with and without it.

Compression-Aware Attack: Zhang et al. 2026, "Less Is More -- Until It Breaks" (no code was found): projected gradient
steps on the pixels, within a largest change, that push the scores of what is kept and matters to the answer below those
of what is dropped, while the untouched model's own prediction is held where it was. Deviation: written from the paper's
abstract and the usual form of such attacks; the weights of the two aims are ours. A method that shows no score that
depends on the pixels is given the pictures made against ``SURROGATE`` instead (the paper's transfer attack).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from tithe.bench import specs
from tithe.bench.prompt import Inputs, Prompt, joined
from tithe.bench.specs import Spec
from tithe.bench.tasks.base import Setting, decoded, marked
from tithe.budget import Keep
from tithe.errors import BadInput, Refused, unknown
from tithe.flow import on
from tithe.hosts import find
from tithe.seams.features import levels, placeholders, rebuilt
from tithe.seams.inputs import arguments
from tithe.types import IMAGE, Card, Compares, Method, Ranks, Step, Tokens
from tithe.zoo import Loaded

CARD = Card(
    "caa-attack",
    "Less Is More -- Until It Breaks: Security Pitfalls of Vision Token Compression in Large Vision-Language Models",
    2026,
    None,
    None,
    "measure",
    ("vlm",),
    "paper-only",
    "none",
    "A small change of the pixels turns the ranking of image tokens over, so that only the compressed model fails.",
)
ATTACKS = ("caa",)
SURROGATE = "fastervlm"
HOLD = 1.0


@dataclass(frozen=True)
class Attacked:
    """One method at one budget under pictures changed by at most ``epsilon`` of the range of a pixel.

    ``overlap`` is the share of the tokens kept of the clean picture that are kept of the changed one, ``_noise`` under
    random signs of the same size. Qualities are shares of right answers: of the method on clean, on noisy and on
    attacked pictures, and of the untouched model on the clean and on these attacked pictures. ``transfer``: the
    pictures were made against another method.
    """

    model: str
    task: str
    method: str
    keep: Keep | None
    epsilon: float
    overlap_noise: float
    overlap: float
    quality: float
    quality_noise: float
    quality_attacked: float
    untouched: float
    untouched_attacked: float
    transfer: bool
    n: int


class Pictures(Protocol):
    """A task that asks about pictures."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    def prompts(self, loaded: Loaded, setting: Setting) -> Iterator[Prompt]:
        """Yield the cases."""
        ...


class _Scored(Exception):
    """The step has scored; the rest of the forward is not needed."""

    def __init__(self, score: Tensor, tokens: Tokens, keep: Tensor) -> None:
        super().__init__("scored")
        self.score, self.tokens, self.keep = score, tokens, keep


def run(
    loaded: Loaded,
    task: Pictures,
    methods: Sequence[str],
    keeps: Sequence[Keep],
    setting: Setting,
    *,
    name: str,
    epsilon: float = 8 / 255,
    steps: int = 10,
    params: dict[str, Any] | None = None,
) -> tuple[Attacked, ...]:
    """Attack every case of ``task`` for every method and budget.

    Args:
        epsilon: the largest change of a pixel, of a range of 1; steps: gradient steps, each of ``2.5 epsilon / steps``.

    Raises:
        BadInput: not a vision-language model, or a value out of range.
    """
    if loaded.kind != "vlm":
        raise BadInput(f"attack: a perturbed picture needs a vision-language model; {name} is a {loaded.kind}.")
    check(ATTACKS[0], epsilon, steps)
    params = params or {}
    cases = list(task.prompts(loaded, setting))
    if any("pixel_values" not in prompt.inputs for prompt in cases):
        raise BadInput(f"attack: task={task.name!r} has cases without a picture; there is nothing to perturb.")
    found = []
    for spec in specs.collect(methods, params):
        for keep in spec.budgets(keeps):
            found.append(_one(loaded, cases, spec, keep, params, (name, task.name, epsilon, steps)))
    return tuple(found)


def check(name: str, epsilon: float, steps: int = 1) -> None:
    """Refuse an unknown attack or a size out of range."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    if not 0.0 < epsilon <= 1.0 or steps < 1:
        raise BadInput(f"epsilon={epsilon!r}, steps={steps!r}: give a change in (0, 1] and at least one step.")


def _one(
    loaded: Loaded,
    cases: Sequence[Prompt],
    spec: Spec,
    keep: Keep | None,
    params: dict[str, Any],
    how: tuple[str, str, float, int],
) -> Attacked:
    name, task, epsilon, steps = how
    model, methods = loaded.model, spec.methods(keep, params)
    bounds = pixel_bounds(loaded)
    transfer = not ranks(model, methods, whole(cases[0]))
    target = specs.parse(SURROGATE).methods(keep, {}) if transfer else methods
    right: dict[str, list[float]] = {key: [] for key in ("clean", "noise", "attacked", "full", "full attacked")}
    overlaps: dict[str, list[float]] = {"noise": [], "attacked": []}
    for number, prompt in enumerate(cases):
        inputs = whole(prompt)
        draw = torch.Generator(device="cpu").manual_seed(number)
        pictures = {
            "clean": inputs,
            "noise": moved(inputs, noise(inputs, epsilon, bounds, draw), bounds),
            "attacked": moved(inputs, perturbation(model, inputs, target, epsilon, steps, bounds), bounds),
        }
        kept = {key: kept_columns(model, methods, given) for key, given in pictures.items()}
        for key, given in pictures.items():
            right[key].append(_right(loaded, prompt, given, methods))
            if key != "clean":
                overlaps[key].append(float((kept[key] & kept["clean"]).sum() / kept["clean"].sum().clamp(min=1)))
        right["full"].append(_right(loaded, prompt, inputs, ()))
        right["full attacked"].append(_right(loaded, prompt, pictures["attacked"], ()))
    return Attacked(
        name,
        task,
        spec.label,
        keep,
        epsilon,
        overlap_noise=fmean(overlaps["noise"]),
        overlap=fmean(overlaps["attacked"]),
        quality=fmean(right["clean"]),
        quality_noise=fmean(right["noise"]),
        quality_attacked=fmean(right["attacked"]),
        untouched=fmean(right["full"]),
        untouched_attacked=fmean(right["full attacked"]),
        transfer=transfer,
        n=len(cases),
    )


def whole(prompt: Prompt) -> Inputs:
    """Return the context with its first question behind it."""
    return joined(prompt.inputs, prompt.asks[0].ids)


def pixel_bounds(loaded: Loaded) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation by channel, ``[3, 1, 1]``, by which the processor has normalised pixels."""
    reader = getattr(loaded.processor, "image_processor", loaded.processor)
    mean, std = (torch.tensor(getattr(reader, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
    return mean.to(loaded.model.device), std.to(loaded.model.device)


def moved(inputs: Inputs, change: Tensor, bounds: tuple[Tensor, Tensor]) -> Inputs:
    """Return ``inputs`` with its pixels changed, within the range that pixels have."""
    mean, std = bounds
    pixels = inputs["pixel_values"]
    low, high = -mean / std, (1 - mean) / std
    return {**inputs, "pixel_values": (pixels + change).clamp(low, high)}


def noise(inputs: Inputs, epsilon: float, bounds: tuple[Tensor, Tensor], draw: torch.Generator) -> Tensor:
    """Return random signs of size ``epsilon``, as normalised pixels."""
    pixels = inputs["pixel_values"]
    signs = torch.randint(0, 2, pixels.shape, generator=draw).to(pixels) * 2 - 1
    return signs * epsilon / bounds[1]


def perturbation(
    model: Any,
    inputs: Inputs,
    methods: Sequence[Method],
    epsilon: float,
    steps: int,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the change of the pixels, at most ``epsilon`` each, that makes ``methods`` drop what the answer needs.

    One aim is the score of what they keep of the clean picture below that of the others, in units of the scores'
    spread, each kept token weighed by what the untouched model's answer owes it; the other is that model's next-token
    distribution, by its divergence from the clean one. The best of all steps is returned.
    """
    clean = scored(model, methods, inputs)
    kept, live = clean.keep, clean.tokens.valid
    spread = clean.score.detach()[live.expand_as(clean.score)].std().clamp(min=1e-12)
    needed = torch.where(kept, owed(model, inputs, clean.tokens), 0.0)
    down = (needed / needed.sum().clamp(min=1e-12)).expand_as(clean.score) / clean.score.shape[1]
    up = (live & ~kept).expand_as(clean.score)
    with torch.no_grad():
        told = model(**inputs).logits[:, -1].float().log_softmax(-1)

    def cost(change: Tensor) -> Tensor:
        given = moved(inputs, change, bounds)
        score = scored(model, methods, given).score / spread
        away = model(**given).logits[:, -1].float().log_softmax(-1)
        hold = torch.nn.functional.kl_div(away, told, log_target=True, reduction="batchmean")
        return (score * down).sum() - score[up].mean() + HOLD * hold

    size = epsilon / bounds[1]
    change = torch.zeros_like(inputs["pixel_values"])
    best, least = change, torch.inf
    for _ in range(steps):
        change.requires_grad_()
        now = cost(change)
        (gradient,) = torch.autograd.grad(now, change)
        if now.item() < least:
            best, least = change.detach(), now.item()
        change = (change.detach() - gradient.sign() * size * 2.5 / steps).clamp(-size, size)
    with torch.no_grad():
        return change if cost(change).item() < least else best


def owed(model: Any, inputs: Inputs, tokens: Tokens) -> Tensor:
    """Return ``[1, 1, n]``: what the untouched model's next token owes each of ``tokens``, |gradient x feature|."""
    encode = model.base_model.get_image_features
    pixels = arguments(encode, inputs)
    output = encode(**pixels, return_dict=True)
    flat = [level.detach() for level in levels(output)]
    flat[0].requires_grad_()
    rest = {name: value for name, value in inputs.items() if name not in pixels}
    logits = model(**rest, mm_encoder_outputs={"image": rebuilt(output, flat)}).logits[0, -1]
    (gradient,) = torch.autograd.grad(logits.max(), flat[0])
    owing = (gradient * flat[0]).detach().float().abs().sum(-1)
    if tokens.kind is None or bool((tokens.kind == IMAGE).all()):
        return owing[None, None, : tokens.cols.shape[-1]]
    every = torch.zeros(inputs["input_ids"].shape[1] + 1, device=owing.device)
    every[:-1][placeholders(find(model), inputs["input_ids"][0])] = owing
    return every[tokens.cols.long().clamp(max=len(every) - 1)]


def ranks(model: Any, methods: Sequence[Method], inputs: Inputs) -> bool:
    """Whether the first choice that ``methods`` make follows a score that depends on the pixels, and drops any."""
    pixels = inputs["pixel_values"].detach().clone().requires_grad_()
    try:
        found = scored(model, methods, {**inputs, "pixel_values": pixels})
    except Refused:
        return False
    return bool(found.score.requires_grad) and bool((found.tokens.valid & ~found.keep).any())


def scored(model: Any, methods: Sequence[Method], inputs: Inputs) -> _Scored:
    """Return the first score that ``methods`` give, with its graph, and what they would keep by it."""
    try:
        with on(model, [replace(method, steps=tuple(_stopping(step) for step in method.steps)) for method in methods]):
            model(**inputs, use_cache=True)
    except _Scored as found:
        return found
    raise Refused("No step of this method chooses image tokens by a score.")


def kept_columns(model: Any, methods: Sequence[Method], inputs: Inputs) -> Tensor:
    """Return which image tokens of the first choice are kept, ``[n]``."""
    with torch.no_grad(), on(model, list(methods), level="kept") as attached:
        model(**inputs, use_cache=True)
    return next(event.keep.any(1).flatten() for event in attached.trace.events if event.keep is not None)


def _stopping(step: Step) -> Step:
    score, select, compare = step.score, step.select, step.compare
    if score is None or select is None:
        return step

    def stop(evidence: Any, tokens: Tokens) -> Tensor:
        found = score(evidence, tokens).float()
        with torch.no_grad():
            rank = found.detach()
            if compare is None:
                chosen = cast("Ranks", select)(rank, tokens)
            else:
                chosen = cast("Compares", select)(rank, tokens, compare(evidence, tokens).float())
        raise _Scored(found, tokens, chosen.keep)

    return replace(step, score=stop)


def _right(loaded: Loaded, prompt: Prompt, inputs: Inputs, methods: Sequence[Method]) -> float:
    one, model = prompt.asks[0], loaded.model
    width = inputs["input_ids"].shape[1]
    with torch.no_grad():
        if methods:
            with on(model, list(methods)):
                out = model.generate(**inputs, max_new_tokens=one.room, do_sample=False)
        else:
            out = model.generate(**inputs, max_new_tokens=one.room, do_sample=False)
    return marked(decoded(loaded, out[0, width:].tolist()), one)


def to_dict(rows: Sequence[Attacked]) -> list[dict[str, Any]]:
    """Return plain types for JSON."""
    return [asdict(row) for row in rows]
