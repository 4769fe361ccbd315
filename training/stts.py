"""Train STTS's scorer for `zoo:scenes`: `python training/stts.py [--steps 300]`.

On clips: the scorer's logarithm biases the attention of one layer of the frozen tower, so that the loss of the answers
reaches it, and its scores are drawn towards one less the cosine of each token's patches with those one frame before.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from ring2_pictures import answer_loss, asked, compared, drawn_inputs, opened, save
from torch import Tensor
from torch.nn.functional import mse_loss
from vision_common import train

import tithe
from tithe.bench.tasks import scenes
from tithe.scores.spacetime import Scorer, changed

LAYER, HEADS, HIDDEN = 2, 4, 128
RATE, BATCH, ASKED, AUXILIARY = 1e-3, 4, 10, 0.5
LEAST = math.exp(-2)
KINDS = scenes.ASKED_OF["clip"]


def new(width: int) -> Scorer:
    """Return a scorer with random weights."""
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (width, width))
    shapes |= {"w1": (HIDDEN, 2 * width), "w2": (HIDDEN, HIDDEN), "w3": (1, HIDDEN)}
    weights = {f"{name}.weight": torch.randn(shape) / math.sqrt(shape[1]) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    return Scorer({**weights, "heads": torch.tensor(float(HEADS))})


def scored(scorer: Scorer, layer: Any, hidden: Tensor, side: int, pool: int) -> tuple[Tensor, Tensor]:
    """Return scores ``[B, T, m]`` and targets ``[B, T - 1, m]`` of clips ``hidden [B, T, 1 + side ** 2, d]``."""
    values = layer.self_attn.v_proj(layer.layer_norm1(hidden))[:, :, 1:]
    few = side // pool
    cut = values.unflatten(2, (few, pool, few, pool)).transpose(3, 4)
    groups = cut.flatten(4, 5).flatten(2, 3)
    return torch.stack([scorer(one) for one in groups]), torch.stack([changed(one) for one in groups])


def bias(scores: Tensor, side: int, pool: int) -> Tensor:
    """Return what attention adds for each slot of a frame, ``[B * T, 1, 1, 1 + side ** 2]``: none in a first frame."""
    few = side // pool
    patches = scores.unflatten(2, (few, few)).repeat_interleave(pool, 2).repeat_interleave(pool, 3).flatten(2)
    low, high = patches.amin(-1, keepdim=True), patches.amax(-1, keepdim=True)
    scaled = LEAST + (patches - low) * (1 - LEAST) / (high - low + 1e-6)
    scaled = torch.cat([torch.ones_like(scaled[:, :1]), scaled[:, 1:]], 1).flatten(0, 1)
    return torch.cat([torch.ones_like(scaled[:, :1]), scaled], 1).log()[:, None, None]


def main() -> None:
    """Train, write the weights, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pool", type=int, default=200)
    parser.add_argument("--keep", type=int, default=32)
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    loaded = opened("scenes")
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    tower, last = model.model.vision_tower, len(model.model.vision_tower.encoder.layers) - 1
    rng = np.random.default_rng([given.seed, 21])
    drawn, frames, prefix = [], [], torch.empty(0)
    for _ in range(given.pool):
        scene, inputs = drawn_inputs(loaded, "scenes", "clip", rng)
        drawn.append(scene)
        with torch.no_grad():
            hidden = tower.pre_layrnorm(tower.embeddings(inputs["pixel_values_videos"][0]))
            for layer in tower.encoder.layers[:LAYER]:
                hidden = layer(hidden, None)
        frames.append(hidden)
        prefix = inputs["input_ids"][0]
    entering = torch.stack(frames)
    width, count = entering.shape[-1], entering.shape[1]
    side, few = (
        math.isqrt(entering.shape[2] - 1),
        math.isqrt((int((prefix == prefix.mode().values).sum()) - 1) // count),
    )
    scorer = new(width)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = np.random.default_rng([given.seed, 22, step])
        chosen = draw.permutation(len(drawn))[:BATCH]
        hidden = entering[chosen]
        scores, target = scored(scorer, tower.encoder.layers[LAYER], hidden, side, side // few)
        near = mse_loss(scores[:, 1:], target)
        flat = tower.encoder.layers[LAYER](hidden.flatten(0, 1), bias(scores, side, side // few))
        for layer in tower.encoder.layers[LAYER + 1 : last]:
            flat = layer(flat, None)
        read = model.model.apply_pooling(model.model.multi_modal_projector(flat[:, 1:]))
        tokens = read.reshape(len(chosen), -1, width)
        ranked = torch.cat([scores[:, :1] + 2, scores[:, 1:]], 1).flatten(1)
        places = ranked.topk(given.keep, -1).indices.sort(-1).values
        start = int((prefix == prefix.mode().values).nonzero()[0])
        made = tokens.gather(1, places[..., None].expand(-1, -1, width))
        questions = [asked(draw, drawn[place], ASKED) for place in chosen]
        answer = answer_loss(model, tokenizer, prefix, start + places, made, questions)
        return answer + AUXILIARY * near, {"answer": answer.item(), "near": near.item()}

    trained = [value for name, value in scorer.weights.items() if name != "heads"]
    minutes = train(trained, loss, given.steps, RATE, lambda step: None)
    about: dict[str, Any] = {
        "method": "stts",
        "for": "zoo:scenes",
        "script": f"training/stts.py --steps {given.steps} --keep {given.keep} --pool {given.pool} "
        f"--cases {given.cases} --seed {given.seed}",
        "seed": given.seed,
        "layer": LAYER,
        "keep": given.keep,
        "steps": given.steps,
        "cpu_minutes": round(minutes, 1),
        "questions_a_step": BATCH * ASKED,
    }
    save("stts", "scenes", "scorer", scorer.weights, width, about, LAYER)
    rows: list[tuple[str, list[Any]]] = [
        ("untouched", []),
        ("random tokens", [tithe.method("random-patches", keep=given.keep)]),
        ("downsample", [tithe.method("downsample", keep=given.keep)]),
        ("stts, no training", [tithe.method("stts", keep=given.keep, layer=LAYER)]),
        ("stts, trained", [tithe.method("stts", keep=given.keep, weights="scenes")]),
    ]
    compared(loaded, "scenes", KINDS, given.cases, rows, about)
    save("stts", "scenes", "scorer", scorer.weights, width, about, LAYER)


if __name__ == "__main__":
    main()
