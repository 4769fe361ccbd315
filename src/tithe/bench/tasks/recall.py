"""Recall over a long context: facts hidden between lines of filler, asked for once the context is over.

A fact is the line `set KEY VALUE VALUE`, a question the line `get KEY`, its answer both values. Keys and
values are ordinary words that the filler uses as well, so neither a rare embedding nor a large value vector
tells a fact from its surroundings. One fact asked makes a needle test; many facts, several asked, make
multi-key retrieval (Hsieh et al. 2024, RULER, arXiv:2404.06654). No two facts of a case share a key or a first
value, so each word of an answer follows from the word before it.

Cases are drawn with NumPy's PCG64 from the seed alone: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tithe.bench.tasks.lm import heldout_ids, line_breaks

_KEYS = """
read default code time function bytes must should print text argument encoding start filename
test first instance current given size version thread called close files then values output
write last directory user specified part next errors process state count request frame found
loop extra than there stream handler objects need info same buffer empty after before also
target copy integer types help range instead chunk been here offset position order strings skip
named either http available length example just passed pattern characters items system parts
callback enum character defined want convert lock section information raised classes
"""
_VALUES = """
method context used which when number message have source format mode base option only tuple
error command exception header check server event open parser lines prefix case socket arguments
stack item index using host match methods element names into address protocol dict group
returned some handle level action more package port returns headers input find does attribute
options entry create super warnings parse true where already build response make they variable
each link connection optional logger load indent single wait like keyword debug attributes
because flag field without dictionary standard future point sequence implementation namespace
functions
"""
KEYS = tuple(_KEYS.split())
VALUES = tuple(_VALUES.split())


@dataclass(frozen=True)
class RecallCase:
    """A context with facts in it and the questions to ask after it.

    Attributes:
        context: The text of `ids`.
        ids: The context's `length` token ids, led by the tokenizer's BOS where it has one.
        questions: `get KEY` lines, without a newline; encode them without special tokens after `ids`.
        answers: The two values a question asks for, ` VALUE VALUE`, as they follow the question.
        spans: For every fact, in reading order, the half-open token range of its line (newline included).
        asked: For every question, the index in `spans` of the fact it asks for.
    """

    context: str
    ids: tuple[int, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    asked: tuple[int, ...]


def recall_case(
    tokenizer: Any,
    *,
    length: int,
    facts: int,
    asked: int,
    seed: int,
    filler: Sequence[int] | None = None,
    depth: float | None = None,
) -> RecallCase:
    """Draw one case.

    Args:
        tokenizer: A Hugging Face tokenizer.
        length: Tokens of the context, facts and BOS included.
        facts: Facts hidden, each with its own key.
        asked: Questions, about different facts.
        seed: Decides everything that is drawn.
        filler: Token ids of a text of at least `length` tokens; the held-out standard library by default.
        depth: Where the facts stand, 0 (start) to 1 (end of the context); spread at random by default.

    Raises:
        ValueError: A length too short for the facts, more asked than facts, more facts than keys, a depth
            outside 0 to 1, or a filler shorter than needed.
    """
    if not 1 <= asked <= facts <= len(KEYS):
        raise ValueError(f"need 1 <= asked <= facts <= {len(KEYS)}, got asked={asked}, facts={facts}")
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth is a fraction from 0 to 1, got {depth}")
    rng = np.random.Generator(np.random.PCG64(seed))
    keys = rng.choice(len(KEYS), facts, replace=False)
    first = rng.choice(len(VALUES), facts, replace=False)
    second = rng.integers(0, len(VALUES), facts)
    questions = [f"get {KEYS[key]}" for key in keys]
    answers = [f" {VALUES[one]} {VALUES[two]}" for one, two in zip(first, second, strict=True)]
    lines = [f"set {KEYS[key]}{answer}\n" for key, answer in zip(keys, answers, strict=True)]
    encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]

    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - len(head) - sum(map(len, encoded))
    if room < 0:
        raise ValueError(f"{facts} facts take {length - room} tokens, the context has {length}")
    text, breaks = _filler_lines(tokenizer, filler, room, rng)
    if depth is None:
        cuts = np.sort(rng.choice(breaks, facts))
    else:
        cuts = np.full(facts, breaks[np.abs(breaks - depth * room).argmin()])

    ids, spans, start = head, [], 0
    for cut, line in zip(cuts, encoded, strict=True):
        ids = [*ids, *text[start:cut]]
        spans.append((len(ids), len(ids) + len(line)))
        ids, start = [*ids, *line], cut
    ids = [*ids, *text[start:]]
    chosen = rng.permutation(facts)[:asked].tolist()
    return RecallCase(
        context=tokenizer.decode(ids[len(head) :]),
        ids=tuple(ids),
        questions=tuple(questions[fact] for fact in chosen),
        answers=tuple(answers[fact] for fact in chosen),
        spans=tuple(spans),
        asked=tuple(chosen),
    )


def _filler_lines(
    tokenizer: Any, filler: Sequence[int] | None, room: int, rng: np.random.Generator
) -> tuple[list[int], np.ndarray]:
    """A window of `room` filler tokens ending in a newline, and the offsets a line may be put in at."""
    source = np.asarray(heldout_ids(tokenizer) if filler is None else filler)
    if len(source) < room:
        raise ValueError(f"the filler has {len(source)} tokens, {room} are needed")
    start = rng.integers(0, len(source) - room + 1)
    window = source[start : start + room].copy()
    if room == 0:
        return [], np.zeros(1, int)
    window[-1] = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    return window.tolist(), line_breaks(tokenizer, window)
