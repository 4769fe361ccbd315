"""Random weights of trained pruners, saved as these are, and their networks written out in float64 loops."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

C, Q, P, B = 8, 3, 6, 4  # channels, queries, place features, bottleneck
Weights = dict[str, Tensor]


def module(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a CoViPAL module."""
    return {
        "down.weight": (C, width), "down.bias": (C,), "kind": (2, C), "qkv": (3 * C, C), "out": (C, C),
        "mlp.0.weight": (C, C), "mlp.0.bias": (C,), "mlp.2.weight": (1, C), "mlp.2.bias": (1,),
    }  # fmt: skip


def pruner(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an RCP pruner."""
    return {
        "queries": (Q, C), "question.weight": (C, width), "question.bias": (C,), "vision.weight": (C, width),
        "vision.bias": (C,), "cross.weight": (2 * C, C), "cross.bias": (2 * C,), "scorer.0.weight": (C, C),
        "scorer.0.bias": (C,), "scorer.1.weight": (C,), "scorer.1.bias": (C,), "scorer.3.weight": (1, C),
        "scorer.3.bias": (1,), "aggregate.weight": (1, Q), "aggregate.bias": (1,), "bias": (),
    }  # fmt: skip


def context(width: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what remembers a cut."""
    return {
        "places": (tokens, P), "look": (P,), "mask.weight": (B, P), "mask.bias": (B,), "pruned.weight": (B, width),
        "pruned.bias": (B,),
    }  # fmt: skip


def film(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter."""
    return {
        "down.weight": (B, width), "down.bias": (B,), "query.weight": (B, width), "query.bias": (B,),
        "gamma.weight": (B, B), "gamma.bias": (B,), "beta.weight": (B, B), "beta.bias": (B,),
        "up.weight": (width, B), "up.bias": (width,), "alpha": (),
    }  # fmt: skip


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Random weights that half precision holds exactly."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw).half().float() for name, shape in shapes.items()}


def saved(path: Path, method: str, width: int, parts: dict[str, Weights]) -> str:
    """Write ``parts`` as the training scripts do; return the name of the file."""
    flat = {f"{part}.{name}": w.half().contiguous() for part, ws in parts.items() for name, w in ws.items()}
    save_file(flat, str(path), {"method": method, "width": str(width)})
    return str(path)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """A linear map of one vector, by sums."""
    weight = w[f"{name}.weight"].double()
    bias = w[f"{name}.bias"].double()
    return torch.stack(
        [sum(a * b for a, b in zip(row, x, strict=True)) + c for row, c in zip(weight, bias, strict=True)]
    )


def centred(x: Tensor) -> Tensor:
    """One vector less its mean, over its standard deviation."""
    mean = x.sum() / len(x)
    return (x - mean) / ((x - mean).pow(2).sum() / len(x) + 1e-5).sqrt()


def gelu(x: Tensor) -> Tensor:
    """By the error function."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def shares(logits: list[Tensor]) -> list[Tensor]:
    """Softmax of numbers."""
    top = max(float(one) for one in logits)
    total = sum((one - top).exp() for one in logits)
    return [(one - top).exp() / total for one in logits]


def contextual(w: Weights, states: Tensor, image: list[bool], heads: int = 4) -> Tensor:
    """Scores ``[n]`` of one row without padding."""
    x = [
        linear(w, "down", centred(s.double())) + w["kind"][int(i)].double() for s, i in zip(states, image, strict=True)
    ]
    q, k, v = ([part.double() @ one for one in x] for part in w["qkv"].chunk(3))
    size, scores = C // heads, []
    for place, one in enumerate(x):
        joined = []
        for head in range(heads):
            cut = slice(head * size, head * size + size)
            weigh = shares([q[place][cut] @ other[cut] / math.sqrt(size) for other in k])
            joined.append(sum(a * other[cut] for a, other in zip(weigh, v, strict=True)))
        out = one + w["out"].double() @ torch.cat(joined)  # type: ignore[arg-type]
        scores.append(linear(w, "mlp.2", gelu(linear(w, "mlp.0", centred(out))))[0])
    return torch.stack(scores)


def cross(w: Weights, vision: Tensor, asked: Tensor, received: list[float], heads: int = 4) -> Tensor:
    """Logits ``[n]`` of the image tokens of one row; ``asked`` is the mean of the question's states."""
    logs = [math.log(max(one, 1e-6)) for one in received]
    tokens = [linear(w, "vision", one.double()) for one in vision]
    shift = linear(w, "question", asked.double())
    size, attended = C // heads, torch.zeros(Q, len(tokens), dtype=torch.float64)
    weight, bias = w["cross.weight"].double(), w["cross.bias"].double()
    for place, query in enumerate(w["queries"].double()):
        asking = weight[:C] @ (query + shift) + bias[:C]
        keys = [weight[C:] @ one + bias[C:] for one in tokens]
        for head in range(heads):
            cut = slice(head * size, head * size + size)
            attended[place] += torch.stack(shares([asking[cut] @ key[cut] / math.sqrt(size) for key in keys])) / heads
    out = []
    for place, one in enumerate(tokens):
        looked = sum(w["aggregate.weight"][0, n].double() * attended[n, place] for n in range(Q))
        inner = centred(linear(w, "scorer.0", one)) * w["scorer.1.weight"].double() + w["scorer.1.bias"].double()
        own = linear(w, "scorer.3", gelu(inner))[0]
        baseline = logs[place] - sum(logs) / len(logs)
        out.append(baseline + looked + w["aggregate.bias"][0].double() + own + w["bias"].double())
    return torch.stack(out)


def remembered(w: Weights, kept: list[bool], gone: Tensor) -> Tensor:
    """The context ``[B]`` of a cut: which image tokens of the prompt are left, and the states of those that go."""
    places = [
        one.double() if stays else torch.zeros(P, dtype=torch.float64)
        for one, stays in zip(w["places"], kept, strict=True)
    ]
    weigh = shares([w["look"].double() @ one / math.sqrt(P) for one in places])
    pooled = sum(a * one for a, one in zip(weigh, places, strict=True))
    mean = gone.double().sum(0) / max(1, len(gone))
    return linear(w, "mask", pooled) + linear(w, "pruned", mean)  # type: ignore[arg-type]


def change(w: Weights, read: Tensor, asking: Tensor, made: Tensor) -> Tensor:
    """What an adapter adds ``[d]`` to what attention gave for one token."""
    told = made + linear(w, "query", asking.double())
    features = (1 + linear(w, "gamma", told)) * gelu(linear(w, "down", read.double())) + linear(w, "beta", told)
    return w["alpha"].double() * linear(w, "up", features)
