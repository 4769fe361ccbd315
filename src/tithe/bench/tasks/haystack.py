"""Stores of key-value pairs with threads in them: the value of one pair is the key of the next.

Needle threading: Roberts, Han, Albanie 2024, arXiv:2411.05000, https://github.com/jonathan-roberts1/needle-threading
@ 006f8f5 (MIT; one example and its evaluation, the generators are not published). A store is a JSON object of UUIDs, as
theirs, or of plain words, lines ``set KEY VALUE``, for models too small to copy UUIDs. A needle is a pair asked for, a
thread a chain of them. No value of another pair is a key, and no key of a needle stands elsewhere, so that every
question has one answer.

Cases are drawn with NumPy's PCG64 from the seed alone: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from tithe.bench.tasks.recall import KEYS, VALUES

Symbols = Literal["uuid", "words"]
Direction = Literal["forward", "backward", "random"]
Placement = Literal["random", "clustered"]
Form = Literal["get", "all", "path", "long"]

_MORE = """
return not and name file else value with use that from except object this are set line string data path
type other module list result new has add class will call all out end any may node while support was
contain run over sign select token allow continue app follow you timeout block root off change two
finally yield full master date content global member tag parent local man work represent top old mark
initial stop look under record fail following them back raise init child flags temp sort
"""
WORDS = tuple(dict.fromkeys((*KEYS, *VALUES, *_MORE.split())))
MARK = "*"
_SAMPLE = 64


class Pair(NamedTuple):
    """One entry of a store."""

    key: str
    value: str


class Needles(NamedTuple):
    """What is hidden: ``pairs [N]`` of numbered symbols, thread by thread and step by step.

    ``paths``: for every thread the symbols on it, from its first key to its last value. ``keys``: how many symbols are
    keys, the first ones; ``ends``: how many are values only.
    """

    pairs: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]
    keys: int
    ends: int


@dataclass(frozen=True)
class ThreadCase:
    """A store, a question about it and what is to be answered.

    Attributes:
        context: The text of ``ids``, without the question.
        ids: At most ``length`` token ids, short of it by less than two pairs, led by BOS where the tokenizer has one.
        question: To be encoded without special tokens and put behind ``ids``.
        answer: What is to be written behind the question.
        paths: For every needle or thread, in the order asked, its symbols from the first key to the last value.
        depths: For every path, the mean place of its pairs in the store, 0 (first) to 1 (last).
        pairs: How many pairs the store has.
    """

    context: str
    ids: tuple[int, ...]
    question: str
    answer: str
    paths: tuple[tuple[str, ...], ...]
    depths: tuple[float, ...]
    pairs: int

    @property
    def values(self) -> tuple[str, ...]:
        """The last value of every path."""
        return tuple(path[-1] for path in self.paths)


def thread_case(
    tokenizer: Any,
    *,
    length: int,
    seed: int,
    symbols: Symbols = "words",
    form: Form = "get",
    threads: int = 1,
    steps: int = 1,
    branching: int = 1,
    stray: int | None = None,
    direction: Direction = "random",
    placement: Placement = "random",
    depth: float | None = None,
) -> ThreadCase:
    """Draw one case.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context at most.
        seed: Decides everything that is drawn.
        symbols: ``uuid`` in a JSON object, or ``words`` in lines.
        form: What is asked: the values of keys (``get``), those of all marked keys (``all``), the ends of threads
            (``path``) or that of the longest branch (``long``). Words answer the last two with the whole way there.
        threads: Needles or threads; steps: pairs on each; branching: pairs that every key on a thread has but the last.
        stray: Pairs of a side branch at most; by default any number that leaves the thread the longest way.
        direction: Whether a thread goes on behind the pair it is at, before it, or anywhere.
        placement: Needles anywhere, or next to each other; depth: where they stand instead, 0 (first) to 1 (last pair).

    Raises:
        ValueError: Sizes below one, a depth outside 0 to 1, more needles than there is room for, or too few words.
    """
    if min(threads, steps, branching, 1 if stray is None else stray) < 1:
        raise ValueError(f"threads={threads}, steps={steps}, branching={branching}, stray={stray}: at least 1 of each")
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth is a fraction from 0 to 1, got {depth}")
    for name, value, known in (
        ("symbols", symbols, Symbols),
        ("direction", direction, Direction),
        ("form", form, Form),
    ):
        if value not in get_args(known):
            raise ValueError(f"{name}={value!r}; one of {', '.join(get_args(known))}")
    if placement not in get_args(Placement):
        raise ValueError(f"placement={placement!r}; one of {', '.join(get_args(Placement))}")
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room, cost = length - len(head), pair_cost(tokenizer, symbols)
    count = max(int(room / cost), 1)
    while True:
        rng = np.random.Generator(np.random.PCG64(seed))
        needles = hidden(rng, threads, steps, branching, stray)
        if len(needles.pairs) > count:
            taken = len(needles.pairs)
            raise ValueError(f"{taken} needles take about {ceil(taken * cost) + len(head)} tokens, it has {length}")
        places = placed(rng, needles, count, direction, placement, depth)
        pairs, names = _filled(rng, needles, places, count, symbols, form == "all")
        context = layout(pairs, symbols)
        ids = tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= room:
            break
        count -= max(1, int((len(ids) - room) / cost))
    return _asked(rng, (context, (*head, *ids)), needles, names, places, count, symbols, form)


def hidden(rng: np.random.Generator, threads: int, steps: int, branching: int, stray: int | None) -> Needles:
    """Draw the needles as pairs of numbers: first those of all threads, then those of their side branches.

    A key with r pairs still to go has side branches of less than r pairs, so that the thread is the longest; the last
    key of a thread has none.
    """
    # Keys are numbered from 0 on and last values from -1 down until both counts are known.
    keys, ends = 0, 0
    pairs: list[tuple[int, int]] = []
    paths: list[tuple[int, ...]] = []

    def chain(first: int, size: int) -> tuple[int, ...]:
        nonlocal keys, ends
        inner = tuple(range(keys, keys + size - 1))
        keys, ends = keys + size - 1, ends + 1
        path = (first, *inner, -ends)
        pairs.extend(pairwise(path))
        return path

    for _ in range(threads):
        keys += 1
        paths.append(chain(keys - 1, steps))
    for path in paths:
        for step in range(steps - 1):
            most = min(steps - step - 1, stray or steps)
            for size in rng.integers(1, most + 1, branching - 1):
                chain(path[step], int(size))
    final = [tuple(node if node >= 0 else keys - 1 - node for node in pair) for pair in pairs]
    named = tuple(tuple(node if node >= 0 else keys - 1 - node for node in path) for path in paths)
    return Needles(tuple((one, other) for one, other in final), named, keys, ends)


def placed(
    rng: np.random.Generator,
    needles: Needles,
    count: int,
    direction: Direction,
    placement: Placement,
    depth: float | None,
) -> np.ndarray:
    """Return where among ``count`` pairs each needle stands, ``[N]``, all different.

    The pairs of each thread run in ``direction``; those of side branches stand anywhere among the needles.
    """
    total = len(needles.pairs)
    if depth is not None:
        start = min(max(round(depth * (count - 1)) - total // 2, 0), count - total)
        spots = np.arange(start, start + total)
    elif placement == "clustered":
        spots = np.arange(total) + rng.integers(0, count - total + 1)
    else:
        spots = rng.choice(count, total, replace=False)
    places = rng.permutation(spots)
    if direction != "random":
        steps = len(needles.paths[0]) - 1
        for start in range(0, len(needles.paths) * steps, steps):
            ordered = np.sort(places[start : start + steps])
            places[start : start + steps] = ordered if direction == "forward" else ordered[::-1]
    return places


def layout(pairs: Sequence[Pair], symbols: Symbols) -> str:
    """Return a store as text that ends in a newline."""
    if symbols == "uuid":
        return "{" + ", ".join(f'"{key}": "{value}"' for key, value in pairs) + "}\n"
    return "".join(f"{key} {value}\n" if key[0] == MARK else f"set {key} {value}\n" for key, value in pairs)


def uuids(rng: np.random.Generator, count: int) -> list[str]:
    """Draw 128 random bits each, written as UUIDs."""
    digits = rng.bytes(16 * count).hex()
    rows = (digits[start : start + 32] for start in range(0, len(digits), 32))
    return [f"{row[:8]}-{row[8:12]}-{row[12:16]}-{row[16:20]}-{row[20:]}" for row in rows]


@lru_cache(maxsize=8)
def pair_cost(tokenizer: Any, symbols: Symbols) -> float:
    """Return the tokens of a pair in a store, on the mean.

    Raises:
        ValueError: The tokenizer does not give a store back as it was.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    if symbols == "uuid":
        names = uuids(rng, 2 * _SAMPLE)
        names[0] = MARK + names[0][1:]
    else:
        names = list(WORDS)
    pairs = [Pair(*names[place : place + 2]) for place in range(0, len(names) - 1, 2)]
    text = layout(pairs, symbols) + (f"{MARK} {names[0]} {names[1]}\n" if symbols == "words" else "")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() != text.strip():
        raise ValueError(f"this tokenizer cannot express symbols={symbols!r}: it does not give them back as they were")
    return len(ids) / len(pairs) if symbols == "uuid" else len(ids) / (len(pairs) + 1)


def _check_one(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}; one of {', '.join(known)}")


def _filled(
    rng: np.random.Generator, needles: Needles, places: np.ndarray, count: int, symbols: Symbols, marked: bool
) -> tuple[list[Pair], list[str]]:
    """Return all pairs of a store in reading order, and the symbols by number."""
    others = count - len(needles.pairs)
    if symbols == "uuid":
        drawn = uuids(rng, needles.keys + needles.ends + 2 * others)
        names, rest = drawn[: needles.keys + needles.ends], drawn[needles.keys + needles.ends :]
        keys, values = rest[:others], rest[others:]
    else:
        names, keys, values = _worded(rng, needles, others)
    if marked:
        names[: needles.keys] = [_marked(rng, name, symbols) for name in names[: needles.keys]]
    pairs = [Pair("", "")] * count
    for place, (key, value) in zip(places.tolist(), needles.pairs, strict=True):
        pairs[place] = Pair(names[key], names[value])
    taken = set(places.tolist())
    free = (place for place in range(count) if place not in taken)
    for place, key_name, value_name in zip(free, keys, values, strict=True):
        pairs[place] = Pair(key_name, value_name)
    return pairs, names


def _worded(rng: np.random.Generator, needles: Needles, others: int) -> tuple[list[str], list[str], list[str]]:
    """Return words for the needles, for other keys and for other values.

    Words that are keys and words that are only values are told apart anew in every case. Other keys come again once all
    have been used; nobody asks for them. Last values of needles are values of others as well, so that being rare tells
    nothing.
    """
    order = rng.permutation(len(WORDS))
    split = needles.keys + 3 * (len(WORDS) - needles.keys) // 4
    if split < needles.keys + 1 or len(WORDS) - split < needles.ends:
        raise ValueError(f"{needles.keys} keys and {needles.ends} values take more than the {len(WORDS)} words")
    values = order[split:]
    names = [*order[: needles.keys], *values[: needles.ends]]
    keys = np.resize(order[needles.keys : split], others)
    drawn = rng.choice(values, others)
    return [[WORDS[word] for word in words] for words in (names, keys, drawn)]  # type: ignore[return-value]


def _marked(rng: np.random.Generator, name: str, symbols: Symbols) -> str:
    if symbols == "words":
        return f"{MARK} {name}"
    place = int(rng.choice([place for place, digit in enumerate(name) if digit != "-"]))
    return name[:place] + MARK + name[place + 1 :]


def _asked(
    rng: np.random.Generator,
    text: tuple[str, tuple[int, ...]],
    needles: Needles,
    names: Sequence[str],
    places: np.ndarray,
    count: int,
    symbols: Symbols,
    form: Form,
) -> ThreadCase:
    steps = len(needles.paths[0]) - 1
    rows = places[: len(needles.paths) * steps].reshape(-1, steps)
    order = np.argsort(rows[:, 0]) if form == "all" else rng.permutation(len(rows))
    paths = tuple(tuple(names[node] for node in needles.paths[row]) for row in order)
    depths = tuple(float(rows[row].mean()) / max(count - 1, 1) for row in order)
    write = _in_words if symbols == "words" else _in_prose
    return ThreadCase(*text, *write(form, paths), paths, depths, count)


def _in_words(form: Form, paths: Sequence[Sequence[str]]) -> tuple[str, str]:
    told = (" " + " ".join(path[1:]) for path in paths)
    if form == "all":
        return f"get {MARK}", "".join(told)
    question = " ".join((form, *(path[0] for path in paths)))
    return question, "".join(told) if form == "get" else ",".join(told)


def _in_prose(form: Form, paths: Sequence[Sequence[str]]) -> tuple[str, str]:
    keys = ", ".join(f'"{path[0]}"' for path in paths)
    answer = " " + ", ".join(f'"{path[-1]}"' for path in paths)
    one = len(paths) == 1
    only = "Reply with the value only." if one else "Reply with the values only, in the order of the keys."
    given = f"{'Key' if one else 'Keys'}: {keys}\n"
    if form == "get":
        what = "What value has this key" if one else "What values have these keys"
        return f"{what} in the JSON object above? {only}\n{given}{'Value' if one else 'Values'}:", answer
    if form == "all":
        text = (
            f'What values have the keys with a "{MARK}" in them in the JSON object above? Reply with the values only.'
        )
        return f"{text}\nValues:", answer
    chain = "In the JSON object above, a value may be a key as well, its value again a key, and so on. "
    if form == "long":
        chain += "A key may stand there several times, and the ways from it part. "
    way = "the longest way" if form == "long" else "the way"
    whence = "this key" if one else "each of these keys"
    return (
        f"{chain}What is the last value on {way} from {whence}? {only}\n{given}Last value{'' if one else 's'}:",
        answer,
    )
