"""Random hosts, prompts and methods."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import tiny
import tiny_vision
import torch
from canonical import host
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import tithe
from tithe.errors import TitheError

KINDS = ("llm", "vlm", "vit")
SERVING = {kind: [slug for slug, factory in tithe.factories().items() if kind in factory.card.hosts] for kind in KINDS}
HEADS = [(4, 2), (4, 4), (4, 1), (2, 1)]
# What is made for long prompts, cut to the length of these.
SMALL: dict[str, st.SearchStrategy[Any]] = {
    "window": st.integers(1, 12),
    "recent": st.integers(1, 12),
    "sink": st.integers(0, 3),
    "residual": st.sampled_from([8, 16]),
    "group": st.just(8),
    "chunk": st.sampled_from([4, 8, 16]),
    "block": st.sampled_from([2, 4, 8]),
    "blocks": st.integers(1, 3),
    "seed": st.integers(0, 9),
}
FIXED = {"delta": {"layer": 0}, "catp": {"layer": 1}}
MODES: dict[str, st.SearchStrategy[Any]] = {
    "schedule": st.sampled_from(["prefill", "chunk", 1, 2, ("chunk", 2)]),
    "page": st.sampled_from([1, 4, 7]),
    "ragged": st.booleans(),
    "share": st.sampled_from(["uniform", "pyramid", "entropy", (3.0, 1.0, 2.0)]),
}
FRACTIONS = st.floats(0.02, 1.0)
KEEPS = st.one_of(FRACTIONS, FRACTIONS, st.integers(1, 40), st.integers(16, 40))
BYTES = st.integers(60, 400).map(lambda kilobytes: f"{kilobytes}KB")


@dataclass(frozen=True)
class Asked:
    """A model, what it is given, how many tokens it writes, and a method with its parameters."""

    family: str
    made: Callable[[], tuple[PreTrainedModel, dict[str, Tensor]]]
    new: int
    slug: str
    params: dict[str, Any]

    @cached_property
    def both(self) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """The model and the inputs, made when they are wanted: a strategy may not touch the state of ``random``."""
        return self.made()

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return self.both[0]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What it is given."""
        return self.both[1]

    def __repr__(self) -> str:
        shapes = {name: tuple(value.shape) for name, value in self.inputs.items()}
        pads = (self.inputs["attention_mask"] == 0).sum(-1).tolist() if "attention_mask" in self.inputs else None
        made = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.slug}({made}) on {self.family}, {shapes}, pads {pads}, {self.new} new"


@cache
def text(family: str, layers: int, heads: tuple[int, int]) -> PreTrainedModel:
    """Return a decoder of a family with so many layers, and heads for queries and for keys."""
    like = tiny.TEXT[family]().config
    extra: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads[0]}
    extra["num_key_value_heads"] = heads[1]
    given = {**like.to_dict(), **extra}
    if "layer_types" in given:
        given["layer_types"] = (given["layer_types"] * 2)[:layers]
    torch.manual_seed(1)
    return type(tiny.TEXT[family]())(type(like)(**given)).eval()


@cache
def seeing(family: str) -> PreTrainedModel:
    """Return a vision-language model."""
    return tiny_vision.VLMS[family].model()


@cache
def encoder(family: str) -> PreTrainedModel:
    """Return an image classifier, or an encoder alone."""
    return host("vit")[0] if family == "classifier" else tiny_vision.VITS[family]()


def prompts(draw: st.DrawFn, kind: str) -> tuple[str, Callable[[], tuple[PreTrainedModel, dict[str, Tensor]]]]:
    """Draw a host of ``kind`` and what it is given: one to three rows, left-padded."""
    rows, seed = draw(st.integers(1, 3)), draw(st.integers(0, 99))
    if kind == "llm":
        family, layers, heads = draw(st.sampled_from(sorted(tiny.TEXT))), draw(st.integers(2, 4)), draw(HEAD)
        lengths = draw(st.lists(st.integers(5, 60), min_size=rows, max_size=rows))
        shown = f"{family} of {layers} layers, {heads} heads"
        return shown, lambda: (text(family, layers, heads), words(lengths, seed))
    if kind == "vlm":
        family = draw(st.sampled_from(sorted(tiny_vision.VLMS)))
        images = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows).filter(any))
        around = draw(st.integers(2, 9))
        return family, lambda: (seeing(family), tiny_vision.prompt(family, seeing(family), images, seed, around))
    family = draw(st.sampled_from(["classifier", *sorted(tiny_vision.VITS)]))
    noise = torch.Generator().manual_seed(seed)
    return family, lambda: (encoder(family), {"pixel_values": torch.randn(rows, 3, 16, 16, generator=noise)})


def words(lengths: list[int], seed: int) -> dict[str, Tensor]:
    """Return random tokens, a row for each of ``lengths``, padded on the left."""
    ids = torch.randint(5, tiny.VOCAB, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


HEAD = st.sampled_from(HEADS)


def served(slug: str) -> tuple[str, ...]:
    """Return the modes that a method has."""
    found = []
    for name, value in {"schedule": "chunk", "page": 4, "ragged": True, "share": "uniform"}.items():
        if name in tithe.factories()[slug].parameters:
            continue
        with suppress(TitheError):
            tithe.method(slug, **{name: value})
            found.append(name)
    return tuple(found)


SERVED = {slug: served(slug) for slug in tithe.factories()}


@st.composite
def asked(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, slugs: Callable[[str], bool] = bool) -> Asked:
    """Draw everything."""
    kind = draw(st.sampled_from(kinds))
    slug = draw(st.sampled_from([one for one in SERVING[kind] if slugs(one)]))
    factory = tithe.factories()[slug]
    params = {name: draw(SMALL[name]) for name in factory.parameters if name in SMALL}
    params |= {name: value for name, value in FIXED.get(slug, {}).items() if name in factory.parameters}
    if "keep" in factory.parameters and not isinstance(factory.parameters["keep"].default, tuple):
        often = 4 if "schedule" in SERVED[slug] else 30
        params["keep"] = draw(KEEPS if kind == "vit" or draw(st.integers(0, often)) else BYTES)
    every = tuple(name for name in MODES if name not in factory.parameters)
    possible = draw(st.sampled_from([SERVED[slug]] * 9 + [every]))
    names = draw(st.lists(st.sampled_from(possible), max_size=2, unique=True)) if possible else ()
    params |= {name: draw(MODES[name]) for name in names}
    family, made = prompts(draw, kind)
    return Asked(family, made, draw(st.integers(1, 6)), slug, params)
