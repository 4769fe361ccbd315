"""Variable tracking: which variables end up with a value, told through a chain of assignments.

Hsieh et al. 2024, RULER, arXiv:2404.06654; NVIDIA/RULER @ c3f5e3b (Apache-2.0): one chain of four hops, five variables,
in a haystack of one line repeated. Further chains have values of their own and are not asked for. Each chain stands in
its order, anywhere in the context.

Deviation: chains are put in with replacement of places and without pushing each other apart, where RULER inserts one
chain after the other; the value of a chain differs from all others'.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tithe.bench.tasks.cases import (
    PLAIN_KEYS,
    PLAIN_VALUES,
    PLAIN_WORDS,
    Case,
    Standard,
    Wording,
    encoded,
    expressible,
    generator,
    weave,
)
from tithe.bench.tasks.needles import LINE
from tithe.bench.tasks.prose import Query, fitted, running, sentences, spread, written

ROOM = 30
EXAMPLE = 500
OPENING = "Somewhere in the text below variables are given values. Follow what is assigned to what.\n\n"
Path = tuple[str, tuple[str, ...]]


def plain_tracking(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    haystack: str = "noise",
    chains: int = 1,
    hops: int = 4,
    asked: int = 1,
    filler: Sequence[int] | None = None,
) -> Case:
    """Draw one case in the terse form, of exactly `length` tokens.

    A chain is the lines `copy VALUE A`, `copy A B`, `copy B C` ... in this order, a question `find VALUE`, its answer
    all variables of the chain, ` A B C`, in the order in which they got the value.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, BOS included.
        seed: Decides everything that is drawn.
        haystack: `noise` (one line repeated) or `essay` (running text).
        chains: Chains hidden. hops: copies from variable to variable in each. asked: questions, about different chains.
        filler: Token ids of the running text; the held-out standard library by default.

    Raises:
        ValueError: a length too short, more asked than chains, or more variables than words.
    """
    each = hops + 1
    if not 1 <= asked <= chains <= len(PLAIN_VALUES) or hops < 0 or chains * each > len(PLAIN_KEYS):
        raise ValueError(
            f"need 1 <= asked <= chains and chains * (hops + 1) <= {len(PLAIN_KEYS)}, got {asked=}, {chains=}, {hops=}"
        )
    expressible(tokenizer, tuple(f" {word}" for word in PLAIN_WORDS))
    rng = generator(seed)
    names = [PLAIN_KEYS[place] for place in rng.choice(len(PLAIN_KEYS), chains * each, replace=False)]
    starts = [PLAIN_VALUES[place] for place in rng.choice(len(PLAIN_VALUES), chains, replace=False)]
    paths = [(starts[chain], *names[chain * each : (chain + 1) * each]) for chain in range(chains)]
    lines = [f"copy {source} {target}\n" for path in paths for source, target in pairwise(path)]
    groups = np.repeat(np.arange(chains), each)
    woven = weave(tokenizer, lines, length, rng, haystack, filler, groups=groups.tolist())
    chosen = rng.permutation(chains)[:asked].tolist()
    return Case(
        ids=woven.ids,
        questions=tuple(f"find {paths[chain][0]}" for chain in chosen),
        answers=tuple("".join(f" {name}" for name in paths[chain][1:]) for chain in chosen),
        wanted=tuple(paths[chain][1:] for chain in chosen),
        spans=tuple(woven.spans[chain * each : (chain + 1) * each] for chain in chosen),
    )


def written_tracking(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    haystack: str = "noise",
    chains: int = 1,
    hops: int = 4,
    shots: int = 1,
    source: str | None = None,
) -> Case:
    """Draw one case in natural language, of at most `length` tokens, led by `shots` worked examples of their own.

    Variables are five capital letters, values five digits; a chain is `VAR A = 12345`, `VAR B = VAR A` ... In an
    example variables have three letters; where its lines fit, it takes at most 500 tokens and half of `length`.

    Raises:
        ValueError: a length too short, or fewer than one chain.
        BadInput: `source`, the text file to read instead of the held-out prose, cannot be read.
    """
    if chains < 1 or hops < 0:
        raise ValueError(f"need chains >= 1 and hops >= 0, got {chains=}, {hops=}")
    if haystack not in ("noise", "essay"):
        raise ValueError(f"haystack={haystack!r} is not known; possible: essay, noise")
    rng = generator(seed)
    shown = "".join(_example(tokenizer, min(EXAMPLE, length // 2), chains, hops, rng) for _ in range(shots))
    paths = _paths(chains, hops, 5, rng)
    value, names = paths[0]
    rest = int(rng.integers(2**62))

    def build(n: int) -> str:
        return f"{shown}{OPENING}{_hay(n, paths, haystack, source, generator(rest))}\n"

    query = Query(_question(value), _lead(value, len(names)), " ".join(names), names, tuple(_lines(paths[0])))
    return written(tokenizer, length, build, [query], ROOM)


def _question(value: str) -> str:
    return f"Question: Which variables have the value {value} in the end?"


def _lead(value: str, count: int) -> str:
    return f" Answer: Following the assignments in the text, {count} variables have the value {value}, namely:"


def _example(tokenizer: Any, length: int, chains: int, hops: int, rng: np.random.Generator) -> str:
    paths, rest = _paths(chains, min(hops, 10), 3, rng), int(rng.integers(2**62))
    value, names = paths[0]

    def build(n: int) -> str:
        text = _hay(n, paths, "noise", None, generator(rest))
        return f"{OPENING}{text}\n{_question(value)}{_lead(value, len(names))} {' '.join(names)}\n\n"

    def cost(n: int) -> int:
        return len(encoded(tokenizer, build(n)))

    return build(fitted(cost, max(length, cost(1)), 1))


def _paths(chains: int, hops: int, letters: int, rng: np.random.Generator) -> list[Path]:
    """For every chain its value and its variables, all of them different."""
    names: dict[str, None] = {}
    while len(names) < chains * (hops + 1):
        names["".join(rng.choice(list(string.ascii_uppercase), letters))] = None
    values: dict[str, None] = {}
    while len(values) < chains:
        values[str(rng.integers(10000, 99999))] = None
    each, drawn = hops + 1, tuple(names)
    return [(value, drawn[chain * each : (chain + 1) * each]) for chain, value in enumerate(values)]


def _lines(path: Path) -> list[str]:
    value, names = path
    return [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]


def _hay(n: int, paths: Sequence[Path], haystack: str, source: str | None, rng: np.random.Generator) -> str:
    """A haystack of `n` words (running text) or lines with all chains in it."""
    owner = np.repeat(np.arange(len(paths)), [len(names) for _, names in paths])
    queues = [iter(_lines(path)) for path in paths]
    lines = [next(queues[chain]) for chain in rng.permutation(owner)]
    if haystack == "essay":
        first, depths = int(rng.integers(len(sentences(source)))), spread(len(lines), rng)
        parts, joint = running(source, n, first), " "
        lines = [f"{line}." for line in lines]
    else:
        depths, parts, joint = np.sort(rng.random(len(lines))), [LINE] * n, "\n"
    cuts = [int(len(parts) * depth) for depth in depths]
    for cut, line in zip(cuts[::-1], lines[::-1], strict=True):
        parts.insert(cut, line)
    return joint.join(parts)


@dataclass(frozen=True)
class Tracking(Standard):
    """Variable tracking; see `plain_tracking` and `written_tracking` for the parameters and both forms.

    `shots` and `source` are those of the natural-language form.
    """

    chains: int = 1
    hops: int = 4
    haystack: str = "noise"
    shots: int = 1
    source: str | None = None

    def draw(self, tokenizer: Any, length: int, seed: int, wording: Wording) -> Case:
        """Return the case of a seed."""
        if wording == "plain":
            return plain_tracking(
                tokenizer, length=length, seed=seed, haystack=self.haystack, chains=self.chains, hops=self.hops
            )
        return written_tracking(
            tokenizer,
            length=length,
            seed=seed,
            haystack=self.haystack,
            chains=self.chains,
            hops=self.hops,
            shots=self.shots,
            source=self.source,
        )


TRACKING = Tracking("variable-tracking")
