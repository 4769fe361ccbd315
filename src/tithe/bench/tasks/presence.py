"""Presence: is a thing in the picture, yes or no; after POPE, for models that know these words.

Li et al. 2023, arXiv:2305.10355: each thing that a picture shows is asked for, and one that it does not show. POPE's
popular and adversarial negatives are things that pictures of the world often show, so that a model expects them; of
pictures that are composed here nobody expects anything, and these kinds would be names without a meaning. What can be
made hard here is the binding: `presence@crossed` asks for the colour of one thing in the shape of another.
`hallucination.polls` gives POPE's three kinds for pictures whose things are listed.

The embedded models know neither yes nor no; what they make up is the column `hallucinated` of their own tasks, and
`inventory` has one of them name all that a canvas shows, which CHAIR (Rohrbach et al. 2018, arXiv:1809.02156) counts.
Deviation: POPE's question ("Is there a red circle in the image?") is followed by "Answer yes or no.".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tithe.bench.ask import Reply
from tithe.bench.hallucination import Poll, chair, named, polled, says_yes
from tithe.bench.marking import contains
from tithe.bench.prompt import Ask, Prompt, compose, tokenizer_of
from tithe.bench.tasks import canvas
from tithe.bench.tasks.base import NO_HOME, Answer, Questions, Setting
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

Negatives = Literal["random", "crossed"]

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIDE, GRID, COUNT, ROOM = 336, 3, 3, 8
# Tasks that draw from one seed share no numbers: canvases take 0 and 1, pages, albums and clips 2 to 9.
DRAWN = 10


class Thing(NamedTuple):
    """A shape, its colour and its cell of nine, row by row."""

    colour: str
    shape: str
    cell: int

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Presence(Questions):
    """Three things a picture; each is asked for, and behind it one that is not there. Half of the answers are yes.

    Columns: ``hallucinated``, the share of absent things said to be there; ``recall``, that of things there; and
    ``yes_ratio``. POPE's precision is ``recall / (recall + hallucinated)``, as there are as many of both.
    """

    name: str = "presence"
    kind: HostKind = "vlm"
    home: str | None = NO_HOME
    negatives: Negatives = "random"

    def variant(self, name: str) -> Presence | None:
        """Return the task whose absent things are crossed from those that are there."""
        return replace(self, name=f"{self.name}@crossed", negatives="crossed") if name == "crossed" else None

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one picture, which ends the context, and its six questions."""
        _check(tokenizer_of(loaded), self.name)
        things, polls = presence_case(seed, self.negatives)
        image = drawn(things)
        prompts = [compose(loaded, image=image, question=question(poll.thing), room=ROOM) for poll in polls]
        asks = tuple(_ask(prompt.asks[0], poll) for prompt, poll in zip(prompts, polls, strict=True))
        return Prompt(prompts[0].inputs, asks)

    def extras(self, prompt: Prompt, answers: Sequence[Answer], replies: Sequence[Reply]) -> dict[str, float]:
        """Return what is said of things that are there and of those that are not."""
        said, true = [says_yes(one.given) for one in answers], [one.expected == "yes" for one in answers]
        found = polled(said, true)
        wrong = [yes for yes, there in zip(said, true, strict=True) if not there]
        return {"hallucinated": sum(wrong) / len(wrong), "recall": found.recall, "yes_ratio": found.yes_ratio}


@dataclass(frozen=True)
class Inventory(Questions):
    """All digits of a canvas and their colours, one by one; the answers together are what is said of the picture.

    Columns: CHAIR's ``chair_i``, the share of the digits and colours named that are not there (mean over pictures), and
    ``chair_s``, the share of pictures with one.
    """

    name: str = "inventory"
    kind: HostKind = "vlm"
    home: str | None = "zoo:vlm"

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one canvas, and two questions for each digit on it."""
        scene = canvas.scene(canvas.generator(seed, "test", DRAWN), "test")
        image = Image.fromarray(scene.image)
        asked = [
            (f"what {what} is {canvas.QUADRANTS[cell.quadrant]}", answer)
            for cell in scene.cells
            for what, answer in (("digit", str(cell.digit)), ("colour", canvas.COLOUR_NAMES[cell.colour]))
        ]
        room = ROOM if getattr(loaded.processor, "chat_template", None) else 2
        prompts = [compose(loaded, image=image, question=text, room=room) for text, _ in asked]
        asks = tuple(
            replace(prompt.asks[0], answer=answer, mark=partial(contains, expected=answer))
            for prompt, (_, answer) in zip(prompts, asked, strict=True)
        )
        names = tuple(name for name in canvas.THINGS if name not in canvas.QUADRANTS)
        return Prompt(prompts[0].inputs, asks, names, canvas.shown(scene))

    def extras(self, prompt: Prompt, answers: Sequence[Answer], replies: Sequence[Reply]) -> dict[str, float]:
        """Return CHAIR's figures of all answers about the picture."""
        mentions = [name for answer in answers for name in named(answer.given, prompt.names)]
        found = chair([mentions], [prompt.shown])
        return {"chair_i": found.instances, "chair_s": found.sentences}


def presence_case(seed: int, negatives: Negatives = "random") -> tuple[tuple[Thing, ...], list[Poll]]:
    """Draw the things of a picture, no two of one colour or one shape, and what is asked about it."""
    rng = np.random.Generator(np.random.PCG64(seed))
    colours, shapes, cells = (rng.permutation(len(of))[:COUNT] for of in (COLOURS, SHAPES, range(GRID**2)))
    things = tuple(
        Thing(COLOURS[colour], SHAPES[shape], int(cell))
        for colour, shape, cell in zip(colours, shapes, cells, strict=True)
    )
    there = [thing.name for thing in things]
    if negatives == "crossed":
        # Each colour and each shape stands in one absent thing, as in one that is there.
        absent = [f"{things[place].colour} {things[(place + 1) % COUNT].shape}" for place in range(COUNT)]
    else:
        pool = [name for name in map(" ".join, product(COLOURS, SHAPES)) if name not in there]
        absent = [pool[place] for place in rng.permutation(len(pool))[:COUNT]]
    return things, [Poll(0, name, name in there) for pair in zip(there, absent, strict=True) for name in pair]


def question(thing: str) -> str:
    """Return POPE's question."""
    return f"Is there {'an' if thing[0] in 'aeio' else 'a'} {thing} in the image? Answer yes or no."


def drawn(things: Sequence[Thing]) -> Image.Image:
    """Paint things on white, each within its cell of 112 pixels."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pencil, step = ImageDraw.Draw(image), SIDE // GRID
    for thing in things:
        row, col = divmod(thing.cell, GRID)
        x, y, reach = col * step + step // 2, row * step + step // 2, 0.38 * step
        if thing.shape == "circle":
            pencil.ellipse((x - reach, y - reach, x + reach, y + reach), fill=thing.colour)
        else:
            pencil.polygon([(x + reach * a, y + reach * b) for a, b in _outline(thing.shape)], fill=thing.colour)
    return image


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "cross":
        arm = 0.35
        corners = [(-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)]
        return [*corners, *((-a, -b) for a, b in corners)]
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    points = 3 if shape == "triangle" else 10
    turns = np.arange(points) * 2 * np.pi / points - np.pi / 2
    reach = np.where(np.arange(points) % 2, 0.4, 1.0) if shape == "star" else np.ones(points)
    return [(float(r * np.cos(turn)), float(r * np.sin(turn))) for r, turn in zip(reach, turns, strict=True)]


def _ask(one: Ask, poll: Poll) -> Ask:
    return replace(one, answer="yes" if poll.there else "no", mark=partial(_right, poll.there))


def _right(there: bool, given: str) -> float:
    # POPE takes an answer that says neither for a yes; silence is none.
    return float(bool(given.strip()) and says_yes(given) is there)


def _check(tokenizer: Any, task: str) -> None:
    missing = [word for word in ("yes", "no") if tokenizer.unk_token_id in _ids(tokenizer, word)]
    if missing:
        raise BadInput(f"task={task!r}: the tokenizer of this model has no word for {' and '.join(missing)}.")


def _ids(tokenizer: Any, word: str) -> list[int | None]:
    # A tokenizer without an unknown token has words for everything.
    found: list[int | None] = list(tokenizer(word, add_special_tokens=False)["input_ids"])
    return found if tokenizer.unk_token_id is not None else [-1]


PRESENCE = Presence()
INVENTORY = Inventory()
