"""Train DocOwl2's compressor for a model of the zoo: `python training/docowl2.py [--model scenes] [--steps 400]`.

Cross-attention from the tokens of a thumbnail to the closer ones beneath each, trained on the answers of the frozen
language model. A canvas of `zoo:vlm` has one view: one of each `--block` x `--block` tokens asks its block.
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
from tithe.actions.compress import Compressor, gathered

LAYERS, HEADS, HIDDEN = 2, 4, 256
RATE, BATCH, ASKED = 1e-3, 8, 10
FORMS = {"vlm": ("canvas",), "scenes": ("lines", "strewn")}
KINDS = {"vlm": ("digit-at", "digit-of", "colour-of", "where"), "scenes": ("ocr", "grounding", "counting")}


def new(width: int, scale: float) -> Compressor:
    """Return a compressor that at first gives nearly a normalised query, at the ``scale`` of the model's own tokens."""
    weights: dict[str, Tensor] = {"heads": torch.tensor(float(HEADS))}

    def map_of(name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        weights[f"{name}.weight"] = torch.randn(rows, cols) * gain / math.sqrt(cols)
        weights[f"{name}.bias"] = torch.zeros(rows)

    for layer in range(LAYERS):
        for name, size in (("norm1", width), ("normk", width), ("norm2", width), ("ffn_ln", HIDDEN)):
            weights[f"{layer}.{name}.weight"], weights[f"{layer}.{name}.bias"] = torch.ones(size), torch.zeros(size)
        for name in ("query", "key", "value", "out"):
            map_of(f"{layer}.{name}", width, width)
        for name in ("w1", "w3"):
            map_of(f"{layer}.{name}", HIDDEN, width)
        map_of(f"{layer}.w2", width, HIDDEN, 0.1)
    weights["fc.weight"], weights["fc.bias"] = torch.eye(width) * scale, torch.zeros(width)
    return Compressor({name: value.requires_grad_(name != "heads") for name, value in weights.items()})


def main() -> None:
    """Train, write the weights, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", choices=sorted(FORMS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--pool", type=int, default=300)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    loaded = opened(given.model)
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    rng = np.random.default_rng([given.seed, 17])
    pools: list[tuple[list[Any], Tensor, Tensor, Tensor]] = []
    for form in FORMS[given.model]:
        drawn, features, pairs, prefix = [], [], torch.empty(0), torch.empty(0)
        for _ in range(given.pool):
            scene, inputs = drawn_inputs(loaded, given.model, form, rng)
            spy = noted(model, tithe.method("docowl2", block=given.block), inputs)
            drawn.append(scene)
            features.append(spy.features[0])
            mix = spy.selections[0].mix
            assert mix is not None
            pairs, prefix = mix[0].coalesce().indices(), inputs["input_ids"][0]
        pools.append((drawn, torch.stack(features), pairs, prefix))
    width = pools[0][1].shape[-1]
    compressor = new(width, float(pools[0][1].std()))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = np.random.default_rng([given.seed, 18, step])
        total, told = torch.zeros(()), {}
        for form, (drawn, features, pairs, prefix) in zip(FORMS[given.model], pools, strict=True):
            chosen = draw.permutation(len(drawn))[:BATCH]
            who, region, inside = gathered(pairs)
            tokens = features[chosen]
            made = compressor(
                tokens[:, who].flatten(0, 1), tokens[:, region].flatten(0, 1), inside.repeat(len(chosen), 1)
            ).unflatten(0, (len(chosen), -1))
            start = int((prefix == prefix.mode().values).nonzero()[0])
            columns = (start + who).expand(len(chosen), -1)
            questions = [asked(draw, drawn[place], ASKED) for place in chosen]
            part = answer_loss(model, tokenizer, prefix, columns, made, questions)
            told[form], total = part.item(), total + part
        return total, told

    trained = [value for name, value in compressor.weights.items() if name != "heads"]
    minutes = train(trained, loss, given.steps, RATE, lambda step: None)
    about: dict[str, Any] = {
        "method": "docowl2",
        "for": f"zoo:{given.model}",
        "script": f"training/docowl2.py --model {given.model} --steps {given.steps} --pool {given.pool} "
        f"--cases {given.cases} --seed {given.seed}",
        "seed": given.seed,
        "block": given.block,
        "steps": given.steps,
        "cpu_minutes": round(minutes, 1),
        "questions_a_step": BATCH * ASKED * len(pools),
    }
    save("docowl2", given.model, "compressor", compressor.weights, width, about)
    tokens = len(gathered(pools[0][2])[0])
    rows: list[tuple[str, list[Any]]] = [
        ("untouched", []),
        ("random tokens", [tithe.method("random-patches", keep=tokens)]),
        ("downsample", [tithe.method("downsample", keep=tokens)]),
        ("docowl2, no training", [tithe.method("docowl2", block=given.block)]),
        ("docowl2, trained", [tithe.method("docowl2", weights=given.model, block=given.block)]),
    ]
    compared(loaded, given.model, KINDS[given.model], given.cases, rows, about)
    save("docowl2", given.model, "compressor", compressor.weights, width, about)


if __name__ == "__main__":
    main()
