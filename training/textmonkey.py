"""Train TextMonkey's resampler for a model of the zoo: `python training/textmonkey.py [--model scenes] [--steps 400]`.

The tokens least like any behind them read all others, trained on the answers of the frozen language model. It begins
where it adds nothing, as theirs does.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from ring2_pictures import answer_loss, asked, compared, drawn_inputs, noted, opened, save
from torch import Tensor
from vision_common import train

import tithe
from tithe.actions.resample import Resampler

HEADS, INNER, HEAD = 4, 64, 32
RATE, BATCH, ASKED = 2e-3, 8, 10
FORMS = {"vlm": ("canvas",), "scenes": ("lines", "strewn")}
KINDS = {"vlm": ("digit-at", "digit-of", "colour-of", "where"), "scenes": ("ocr", "grounding", "counting")}
KEEP = {"vlm": 3, "scenes": 48}


def new(width: int) -> Resampler:
    """Return a resampler that adds nothing yet."""
    shapes = {
        "down": (INNER, width),
        "query": (HEADS * HEAD, INNER),
        "key_value": (2 * HEADS * HEAD, INNER),
        "out": (INNER, HEADS * HEAD),
        "fc1": (INNER, INNER),
    }
    weights = {f"{name}.weight": torch.randn(shape) / math.sqrt(shape[1]) for name, shape in shapes.items()}
    weights |= {"fc2.weight": torch.zeros(width, INNER), "scale": torch.ones(1), "heads": torch.tensor(float(HEADS))}
    for name in ("norm_all", "norm_kept", "norm"):
        weights |= {f"{name}.weight": torch.ones(INNER), f"{name}.bias": torch.zeros(INNER)}
    return Resampler({name: value.requires_grad_(name != "heads") for name, value in weights.items()})


def main() -> None:
    """Train, write the weights, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", choices=sorted(FORMS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pool", type=int, default=300)
    parser.add_argument("--cases", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    loaded = opened(given.model)
    model, tokenizer, keep = loaded.model, loaded.processor.tokenizer, KEEP[given.model]
    rng = np.random.default_rng([given.seed, 19])
    pools: list[tuple[list[Any], Tensor, Tensor, Tensor]] = []
    for form in FORMS[given.model]:
        drawn, features, kept, prefix = [], [], [], torch.empty(0)
        for _ in range(given.pool):
            scene, inputs = drawn_inputs(loaded, given.model, form, rng)
            spy = noted(model, tithe.method("textmonkey", keep=keep), inputs)
            drawn.append(scene)
            features.append(spy.features[0])
            kept.append(spy.selections[0].keep[0, 0].nonzero()[:, 0])
            prefix = inputs["input_ids"][0]
        pools.append((drawn, torch.stack(features), torch.stack(kept), prefix))
    width = pools[0][1].shape[-1]
    resampler = new(width)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = np.random.default_rng([given.seed, 20, step])
        total, told = torch.zeros(()), {}
        for form, (drawn, features, kept, prefix) in zip(FORMS[given.model], pools, strict=True):
            chosen = draw.permutation(len(drawn))[:BATCH]
            tokens, places = features[chosen], kept[chosen]
            made = resampler(tokens.gather(1, places[..., None].expand(-1, -1, width)), tokens)
            start = int((prefix == prefix.mode().values).nonzero()[0])
            questions = [asked(draw, drawn[place], ASKED) for place in chosen]
            part = answer_loss(model, tokenizer, prefix, start + places, made, questions)
            told[form], total = part.item(), total + part
        return total, told

    trained = [value for name, value in resampler.weights.items() if name != "heads"]
    minutes = train(trained, loss, given.steps, RATE, lambda step: None)
    about: dict[str, Any] = {
        "method": "textmonkey",
        "for": f"zoo:{given.model}",
        "script": f"training/textmonkey.py --model {given.model} --steps {given.steps} --pool {given.pool} "
        f"--cases {given.cases} --seed {given.seed}",
        "seed": given.seed,
        "keep": keep,
        "steps": given.steps,
        "cpu_minutes": round(minutes, 1),
        "questions_a_step": BATCH * ASKED * len(pools),
    }
    save("textmonkey", given.model, "resampler", resampler.weights, width, about)
    rows: list[tuple[str, list[Any]]] = [
        ("untouched", []),
        ("random tokens", [tithe.method("random-patches", keep=keep)]),
        ("downsample", [tithe.method("downsample", keep=keep)]),
        ("textmonkey, no training", [tithe.method("textmonkey", keep=keep)]),
        ("textmonkey, trained", [tithe.method("textmonkey", keep=keep, weights=given.model)]),
    ]
    compared(loaded, given.model, KINDS[given.model], given.cases, rows, about)
    save("textmonkey", given.model, "resampler", resampler.weights, width, about)


if __name__ == "__main__":
    main()
