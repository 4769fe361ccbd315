"""What the zoo's reader is trained on: the bench's text tasks in their terse forms, drawn at any size that fits.

Where a case allows it, several questions are asked about one context, and parts of a thread on their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from reader_rows import Example, Source, encoded

from tithe.bench.tasks.cases import Case
from tithe.bench.tasks.haystack import ThreadCase, thread_case
from tithe.bench.tasks.needles import plain_needles
from tithe.bench.tasks.reading import plain_reading
from tithe.bench.tasks.tracking import plain_tracking
from tithe.bench.tasks.words import plain_common, plain_frequent

Asks = list[tuple[str, str]]
LINE = 4  # tokens of `set KEY VALUE` with its newline
QUOTE = 18  # tokens of a line and its last word, mostly
LISTED = 9  # tokens of a question for three words of a list, and of its answer


def fresh(rng: np.random.Generator) -> int:
    """A seed that no evaluation uses: those are small."""
    return int(rng.integers(2**40, 2**62))


def of_case(tokenizer: Any, case: Case, *, prose: bool) -> Example:
    """A case of the standard tasks as a training example."""
    return encoded(tokenizer, case.ids, list(zip(case.questions, case.answers, strict=True)), prose=prose)


def up_to(rng: np.random.Generator, most: int, least: int = 1) -> int:
    """A size from `least` to `most`, or `least` where there is no room for more."""
    return int(rng.integers(least, max(least, most), endpoint=True))


def hay(rng: np.random.Generator, *names: str) -> str:
    """One of the haystacks."""
    return names[int(rng.integers(len(names)))]


def mixed(wanted: Sequence[str], rng: np.random.Generator) -> str:
    """An answer in any order, for tasks that are marked so: a reader need then only leave out what it has written."""
    return "".join(f" {wanted[place]}" for place in rng.permutation(len(wanted)))


def single(tokenizer: Any, filler: np.ndarray, rng: np.random.Generator, room: int) -> Example:
    """`set KEY VALUE VALUE` once or often, `get KEY`."""
    haystack = hay(rng, "essay", "essay", "noise", "needles")
    keys = 1 if rng.random() < 0.2 else up_to(rng, min(16, room // 14))
    asked = min(keys, 8)
    case = plain_needles(tokenizer, length=room - 5 * asked, seed=fresh(rng), haystack=haystack, keys=keys, asked=asked,
                         filler=filler)  # fmt: skip
    return of_case(tokenizer, case, prose=haystack == "essay")


def multivalue(tokenizer: Any, filler: np.ndarray, rng: np.random.Generator, room: int) -> Example:
    """Several values of a key, all wanted."""
    haystack, values = hay(rng, "essay", "essay", "noise", "needles"), up_to(rng, min(4, room // 16), 2)
    keys = up_to(rng, min(4, room // (16 * values)))
    case = plain_needles(tokenizer, length=room - keys * (3 + 2 * values), seed=fresh(rng), haystack=haystack,
                         keys=keys, values=values, asked=keys, filler=filler)  # fmt: skip
    asks = [(one, mixed(wanted, rng)) for one, wanted in zip(case.questions, case.wanted, strict=True)]
    return encoded(tokenizer, case.ids, asks, prose=haystack == "essay")


def multiquery(tokenizer: Any, filler: np.ndarray, rng: np.random.Generator, room: int) -> Example:
    """Several keys in one question; written are the values alone, as for `many_needles`, which is marked as right."""
    haystack, queries = hay(rng, "essay", "essay", "noise", "needles"), up_to(rng, min(4, room // 20), 2)
    asked = up_to(rng, min(3, room // (20 * queries)))
    keys = queries * asked + int(rng.integers(0, 4 if room > 128 else 1))
    case = plain_needles(tokenizer, length=room - asked * (2 + 4 * queries), seed=fresh(rng), haystack=haystack,
                         keys=keys, queries=queries, asked=asked, filler=filler)  # fmt: skip
    asks = [(one, " " + " ".join(wanted)) for one, wanted in zip(case.questions, case.wanted, strict=True)]
    return encoded(tokenizer, case.ids, asks, prose=haystack == "essay")


def tracking(tokenizer: Any, filler: np.ndarray, rng: np.random.Generator, room: int) -> Example:
    """Variables copied from one another; `find VALUE` wants the whole chain."""
    haystack, hops = hay(rng, "noise", "noise", "essay"), up_to(rng, 4, 0 if room < 128 else 1)
    chains = up_to(rng, min(5, room // (8 * (hops + 1))))
    case = plain_tracking(tokenizer, length=room - chains * (hops + 4), seed=fresh(rng), haystack=haystack,
                          chains=chains, hops=hops, asked=chains, filler=filler)  # fmt: skip
    return of_case(tokenizer, case, prose=haystack == "essay")


def copying(tokenizer: Any, filler: np.ndarray, rng: np.random.Generator, room: int) -> Example:
    """A run of text said over and over: without this, finding a place in text by what stands there is slow to come."""
    run = int(rng.integers(16, max(17, min(room // 2, 96))))
    start = int(rng.integers(0, len(filler) - run))
    again = tuple(filler[start : start + run].tolist())
    return Example((tokenizer.bos_token_id, *again), (((), again),) * ((room - 1) // (run + 1) - 1))


def rests(text: str, asked: int, rng: np.random.Generator) -> Asks:
    """Lines cut anywhere after their second word, all the rest of them wanted: far more to learn copying from."""
    lines = [words for line in text.splitlines() if 4 <= len(words := line.split()) <= 14]
    asks = []
    for place in rng.permutation(len(lines))[:asked].tolist():
        words = lines[place]
        cut = int(rng.integers(2, len(words) - 1))
        asks.append(("line " + " ".join(words[:cut]), " " + " ".join(words[cut:])))
    return asks


def reading(tokenizer: Any, filler: np.ndarray, rng: np.random.Generator, room: int) -> Example:
    """Lines of text without their last word, which is wanted; what does not fit is not asked."""
    asked = up_to(rng, min(6, room // 64))
    while True:
        try:
            case = plain_reading(tokenizer, length=room - QUOTE * asked, seed=fresh(rng), passage=32, asked=asked,
                                 filler=filler)  # fmt: skip
            asks = list(zip(case.questions, case.answers, strict=True))
            if rng.random() < 0.6:
                asks = rests(tokenizer.decode(case.ids[1:]), asked, rng) + asks
            return encoded(tokenizer, case.ids, asks, prose=True)
        except ValueError:  # too few lines have an end of their own
            asked = max(1, asked - 1)


def common(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """The words that come most often in a list."""
    case = plain_common(tokenizer, length=room - LISTED, seed=fresh(rng), common=int(rng.choice([1, 2, 3, 3])))
    return encoded(tokenizer, case.ids, [(case.questions[0], mixed(case.wanted[0], rng))], prose=False)


def frequent(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """The words that come most often in a text, by how often."""
    asked = int(rng.choice([1, 2, 3, 3])) if room < 256 else 3
    case = plain_frequent(tokenizer, length=room - LISTED, seed=fresh(rng), asked=asked)
    return of_case(tokenizer, case, prose=False)


def of_threads(tokenizer: Any, rng: np.random.Generator, case: ThreadCase, further: Asks) -> Example:
    """A case with its own question among further ones."""
    asks = [(case.question, case.answer), *further]
    return encoded(tokenizer, case.ids, [asks[place] for place in rng.permutation(len(asks))], prose=False)


def parts(form: str, paths: Sequence[Sequence[str]]) -> Asks:
    """The question of each thread from each of its keys on."""
    return [
        (f"{form} {path[step]}", " " + " ".join(path[step + 1 :])) for path in paths for step in range(len(path) - 1)
    ]


def one_needle(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """One value a key, each asked for alone."""
    count = up_to(rng, min(10, room // 12))
    case = thread_case(tokenizer, length=room - 4 * count, seed=fresh(rng), form="get", threads=count)
    asks = parts("get", case.paths)
    return encoded(tokenizer, case.ids, [asks[place] for place in rng.permutation(count)], prose=False)


def many_needles(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """Several keys in one question, only the values wanted."""
    count, together = up_to(rng, min(12, room // 14), 2), up_to(rng, min(6, room // 14), 2)
    placement = "random" if rng.random() < 0.7 else "clustered"
    groups = max(1, count // together)
    length = room - groups * (2 * together + 2)
    case = thread_case(tokenizer, length=length, seed=fresh(rng), threads=groups * together, placement=placement)  # type: ignore[arg-type]
    asks = []
    for start in range(0, groups * together, together):
        group = case.paths[start : start + together]
        asks.append(("get " + " ".join(path[0] for path in group), " " + " ".join(path[1] for path in group)))
    return encoded(tokenizer, case.ids, asks, prose=False)


def marked(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """The values of all marked keys, in reading order."""
    count = up_to(rng, min(6, room // 14))
    case = thread_case(tokenizer, length=room - count - 4, seed=fresh(rng), form="all", threads=count)
    return encoded(tokenizer, case.ids, [(case.question, case.answer)], prose=False)


def threads(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """One thread or several, each asked for alone, and from its middle on."""
    steps = up_to(rng, 5 if room > 100 else 3)
    count = up_to(rng, min(4, room // (12 * steps)))
    direction = hay(rng, "forward", "forward", "backward", "random")
    inner = count * sum(step + 3 for step in range(1, steps + 1))
    case = thread_case(tokenizer, length=max(room - inner, LINE * (count * steps + 3)), seed=fresh(rng), form="path",
                       threads=count, steps=steps, direction=direction)  # type: ignore[arg-type]  # fmt: skip
    asks = parts("path", case.paths)
    return encoded(tokenizer, case.ids, [asks[place] for place in rng.permutation(len(asks))], prose=False)


def many_threads(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """Several threads in one question."""
    steps, count = up_to(rng, min(3, room // 24)), up_to(rng, min(3, room // 32), 2)
    direction = hay(rng, "forward", "forward", "backward", "random")
    length = room - count * (2 * steps + 6) - 2
    case = thread_case(tokenizer, length=length, seed=fresh(rng), form="path", threads=count, steps=steps,
                       direction=direction)  # type: ignore[arg-type]  # fmt: skip
    return of_threads(tokenizer, rng, case, parts("path", case.paths)[::steps])


def branched(tokenizer: Any, rng: np.random.Generator, room: int) -> Example:
    """Threads with a dead end at each key but the last."""
    steps = up_to(rng, 3 if room > 100 else 2, 2)
    count = up_to(rng, min(3, room // 48))
    inner = count * sum(step + 3 for step in range(1, steps + 1))
    case = thread_case(tokenizer, length=room - inner, seed=fresh(rng), form="long", threads=count, steps=steps,
                       branching=2, stray=1)  # fmt: skip
    asks = parts("long", case.paths)
    return encoded(tokenizer, case.ids, [asks[place] for place in rng.permutation(len(asks))], prose=False)


def sources(tokenizer: Any, filler: np.ndarray) -> dict[str, Source]:
    """All of them by name; each draws an example that takes about `room` tokens."""
    with_text = {
        "single": single,
        "multivalue": multivalue,
        "multiquery": multiquery,
        "tracking": tracking,
        "reading": reading,
        "copying": copying,
    }
    without = {
        "common": common,
        "frequent": frequent,
        "one-needle": one_needle,
        "many-needles": many_needles,
        "marked": marked,
        "threads": threads,
        "many-threads": many_threads,
        "branched": branched,
    }
    return {name: partial(draw, tokenizer, filler) for name, draw in with_text.items()} | {
        name: partial(draw, tokenizer) for name, draw in without.items()
    }
