"""Train RCP's pruners and adapters for `zoo:vlm`: `python training/rcp.py [--steps 300] [--out DIR]`.

Pruners decide before layers 1, 2 and 3 by Gumbel-sigmoid with straight-through gradients; what one hides stays hidden.
The loss is that of the answers, plus how far the mean share of image tokens that layers see is from its target, plus,
in the repaired layers, how far mean and variance of what answer tokens read are from the untouched model's. The
temperature falls from 1.5 to 0.1, the target from everything; for the last tenth there is no noise. The adapters'
inputs are cut off from gradients, and the pruners from what is to be repaired. The model stays as it is.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vlm import PATCHES
from vlm_pruning import EACH, SCENES, WIDTH, Asked, Reader, drawn, optimised, record_shipped, ship, still

import tithe
from tithe.scores.pruners import READY, CrossAttention
from tithe.scores.random import hashed
from tithe.seams.repair import Context, Film
from tithe.types import Method

LAYERS, REPAIRED = (1, 2, 3), (1, 2, 3)
CHANNELS, QUERIES, BOTTLENECK, PLACE = 64, 8, 32, 32
RATE = 3e-3
TARGET = 0.15  # of the layers from the first pruned one on
TASK, REPAIR, SPARSE = 1.5, 1.0, 10.0


def pruner() -> CrossAttention:
    """A pruner that begins as the model's own attention."""
    c = CHANNELS
    return CrossAttention(
        {
            "queries": (torch.randn(QUERIES, c) * 0.02).requires_grad_(),
            "question.weight": drawn((c, WIDTH), 0.1),
            "question.bias": still(c),
            "vision.weight": drawn((c, WIDTH), 0.1),
            "vision.bias": still(c),
            "cross.weight": drawn((2 * c, c)),
            "cross.bias": still(2 * c),
            "scorer.0.weight": drawn((c, c)),
            "scorer.0.bias": still(c),
            "scorer.1.weight": still(c, value=1.0),
            "scorer.1.bias": still(c),
            "scorer.3.weight": still(1, c),
            "scorer.3.bias": still(1),
            "aggregate.weight": still(1, QUERIES, value=1 / QUERIES),
            "aggregate.bias": still(1),
            "bias": still(value=READY),
        }
    )


def context() -> Context:
    """An untrained encoder of cuts."""
    return Context(
        {
            "places": (torch.randn(PATCHES, PLACE) * 0.02).requires_grad_(),
            "look": (torch.randn(PLACE) * 0.02).requires_grad_(),
            "mask.weight": drawn((BOTTLENECK, PLACE), 0.1),
            "mask.bias": still(BOTTLENECK),
            "pruned.weight": drawn((BOTTLENECK, WIDTH), 0.1),
            "pruned.bias": still(BOTTLENECK),
        }
    )


def film() -> Film:
    """An adapter that begins without a context: scales of one, shifts of zero."""
    b = BOTTLENECK
    return Film(
        {
            "down.weight": drawn((b, WIDTH)),
            "down.bias": still(b),
            "query.weight": drawn((b, WIDTH), 0.1),
            "query.bias": still(b),
            "gamma.weight": still(b, b),
            "gamma.bias": still(b),
            "beta.weight": still(b, b),
            "beta.bias": still(b),
            "up.weight": drawn((WIDTH, b), 0.1),
            "up.bias": still(WIDTH),
            "alpha": still(value=0.1),
        }
    )


def decided(logits: Tensor, temperature: float, noisy: bool) -> Tensor:
    """A mask of 0 and 1 whose gradient is that of a sigmoid, with logistic noise where it is `noisy`."""
    if noisy:
        u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + u.log() - (1 - u).log()
    soft = (logits / temperature).sigmoid()
    return (soft > 0.5).float() - soft.detach() + soft


def moments(read: Tensor, rows: Asked) -> tuple[Tensor, Tensor]:
    """Mean and variance [B, d], over the tokens that answer, of what they read [B, T, d]."""
    weight = rows.answer.float()[..., None]
    count = weight.sum(1)
    mean = (read * weight).sum(1) / count
    return mean, ((read - mean[:, None]) ** 2 * weight).sum(1) / count


def untouched(reader: Reader, rows: Asked) -> dict[int, tuple[Tensor, Tensor]]:
    """The moments of every repaired layer in the model with all tokens."""
    found, states = {}, reader.entering(rows)
    full = torch.ones_like(rows.ids, dtype=torch.float32)
    for index in range(len(reader.text.layers)):
        _, probs, values = reader.attention(index, states)
        read = reader.read(index, probs, values, full)
        found[index] = moments(read, rows)
        states = reader.onward(index, states, read)
    return found


def received(probs: Tensor, mask: Tensor, rows: Asked) -> Tensor:
    """The attention [B, T] that words of the question pay, mean over them and the heads, where `mask` hides tokens."""
    probs = probs * mask[:, None, None]
    probs = (probs / probs.sum(-1, keepdim=True).clamp(min=1e-9)).mean(1)
    asking = rows.question.float()
    return torch.einsum("bqk,bq->bk", probs, asking) / asking.sum(-1, keepdim=True)


def main() -> None:
    """Train, and measure what was shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help="only measure what is shipped")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    reader = Reader()
    if not given.measure:
        learn(reader, given)
    if given.out is None:
        measure(reader, given.cases)


def learn(reader: Reader, given: argparse.Namespace) -> None:
    """Train and ship."""
    pruners, encoder = {layer: pruner() for layer in LAYERS}, context()
    adapters = {layer: film() for layer in REPAIRED}
    parts = {
        **{f"prune.{layer}": one.weights for layer, one in pruners.items()},
        **{f"repair.{layer}": one.weights for layer, one in adapters.items()},
        "context.0": encoder.weights,
    }
    shares: list[list[float]] = []

    def loss(step: int) -> Tensor:
        rows, done = reader.asked(step, given.seed), step / given.steps
        temperature, noisy = 1.5 + (0.1 - 1.5) * min(1.0, done / 0.6), done < 0.9
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done / 0.3)))
        with torch.no_grad():
            teacher = untouched(reader, rows)
        states, mask = reader.entering(rows), torch.ones_like(rows.ids, dtype=torch.float32)
        made: Tensor | None = None
        left, repair = [], states.new_zeros(())
        for index in range(len(reader.text.layers)):
            entered, probs, values = reader.attention(index, states)
            if index in pruners:
                there = rows.image & (mask > 0.5)
                logits = pruners[index](states, there, rows.question, received(probs, mask.detach(), rows).detach())
                chosen = torch.where(rows.image, decided(logits, temperature, noisy), 1.0)
                before, mask = mask, mask * chosen
                kept = mask[rows.image].view(-1, PATCHES).detach()
                gone = (rows.image & (before > 0.5) & (mask <= 0.5)).float()
                made = encoder(kept, states.detach(), gone)
                left.append(mask[rows.image].view(-1, PATCHES).mean())
            read = reader.read(index, probs, values, mask)
            if index in adapters and made is not None:
                change = adapters[index](read.detach(), entered.detach(), made[:, None])
                change = change * rows.answer[..., None]
                for ours, theirs in zip(moments(read.detach() + change, rows), teacher[index], strict=True):
                    repair = repair + ((ours - theirs) ** 2).sum(-1).mean() / len(adapters)
                read = read + change
            states = reader.onward(index, states, read)
        shares.append([one.item() for one in left])
        if step % 25 == 24:
            print(f"  left {[round(one, 2) for one in shares[-1]]} repair {repair.item():.3f}", flush=True)
        target = TARGET + (1 - TARGET) * falling
        sparse = (torch.stack(left).mean() - target).abs()
        return TASK * reader.loss(states, rows) + REPAIR * repair + SPARSE * sparse

    begun = time.process_time()
    every = [weight for ws in parts.values() for weight in ws.values()]
    biases = [one.weights["bias"] for one in pruners.values()]  # a number of tokens is a matter of these alone
    curve = optimised(every, loss, given.steps, RATE, quick=biases)
    about = {
        "script": "training/rcp.py",
        "seed": given.seed,
        "steps": given.steps,
        "rows_a_step": SCENES * EACH,
        "target": TARGET,
        "cpu_minutes": round((time.process_time() - begun) / 60, 1),
        "loss_first_and_last": [round(float(np.mean(part)), 3) for part in (curve[:10], curve[-10:])],
        "left_by_layer": [round(float(one), 3) for one in np.mean(shares[-20:], 0)],
    }
    ship("rcp", parts, about, given.out)


def by_chance(keep: float) -> Method:
    """Random tokens leave before the same layers."""
    ours = tithe.method("rcp", keep=keep)
    return replace(ours, steps=tuple(replace(one, score=lambda e, t: hashed(t, 1, 0, 0)) for one in ours.steps))


def measure(reader: Reader, cases: int) -> None:
    """Put what is shipped on the page, beside random tokens and the model's own attention."""
    rows = [reader.graded("untouched", None, cases)]
    for keep in (0.25, 0.11):
        mean = (1 + sum(keep ** (stage / 3) for stage in (1, 2, 3))) / 4
        rows += [
            reader.graded("as many random tokens, before the model", tithe.method("random-patches", keep=mean), cases),
            reader.graded(f"{keep:g} at last, random tokens", by_chance(keep), cases),
            reader.graded(f"{keep:g} at last, by attention", tithe.method("rcp", keep=keep), cases),
            reader.graded(
                f"{keep:g} at last, trained, no repair",
                tithe.method("rcp", keep=keep, weights="vlm", repair=False),
                cases,
            ),
            reader.graded(f"{keep:g} at last, trained", tithe.method("rcp", keep=keep, weights="vlm"), cases),
        ]
    own = {"keep": None, "weights": "vlm"}
    rows += [
        reader.graded("as many as the pruners say, no repair", tithe.method("rcp", repair=False, **own), cases),
        reader.graded("as many as the pruners say", tithe.method("rcp", **own), cases),
    ]
    record_shipped(
        "rcp",
        "Pruners before layers 1, 2 and 3 of four, adapters in the same layers; the first reads every image token. "
        "Settings were chosen after shorter runs on these same questions: with biases at the rate of the rest, the "
        "pruners left 0.667.",
        rows,
        cases,
    )


if __name__ == "__main__":
    main()
