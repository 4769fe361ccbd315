"""Cases of one's own: a file of JSON, one case a line, checked as a whole before anything runs.

What a line may hold::

    prompt        what is asked; or question, which is the same; or messages, [{"role": .., "content": ..}, ..]
    context       what is read before it, and what is compressed alone where the question comes after
    answer        the right answer, or a list of right ones
    choices       options to choose from, the answer among them
    images        pictures that stand before everything else, paths relative to the file
    metric        one of METRICS; that of the file where a line names none
    max_new_tokens  room for what is written, 32 by default
    id            what to call the case in the journal
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

from tithe.errors import BadInput, nearest, unknown

Metric = Literal["exact", "begins", "contains", "f1", "choice", "likelihood"]
METRICS: tuple[Metric, ...] = get_args(Metric)
KEYS = ("prompt", "question", "messages", "context", "answer", "choices", "images", "metric", "max_new_tokens", "id")
ASKED = ("prompt", "question", "messages")
ROLES = ("system", "user", "assistant")
ROOM = 32
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Case:
    """One line: what is read, what is asked, and how the reply is marked.

    ``messages`` are (role, content) pairs, the last one the user's, and hold the prompt where there are any.
    """

    line: int
    prompt: str
    answers: tuple[str, ...]
    metric: Metric
    context: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    room: int = ROOM
    name: str = ""

    @property
    def written(self) -> bool:
        """Whether the model writes a reply, rather than being asked how likely it finds a given one."""
        return self.metric not in ("choice", "likelihood")

    @property
    def askable(self) -> bool:
        """Whether something stands before the question that could be compressed without it."""
        return bool(self.context or self.images or len(self.messages) > 1)


@dataclass(frozen=True)
class Lines:
    """A checked file; ``case(i)`` reads its case ``i`` from the disk, so that the file may be larger than memory.

    ``digest``: SHA-256 over the bytes of the file, of every picture it names and of the metric it was given.
    ``pictured``: the first line with pictures, 0 for none; ``graded``: whether quality is in nats, not from 0 to 1.
    """

    path: Path
    metric: Metric | None
    starts: array[int] = field(repr=False, compare=False)
    numbers: array[int] = field(repr=False, compare=False)
    sums: array[int] = field(repr=False, compare=False)
    digest: str
    pictured: int
    graded: bool

    def __len__(self) -> int:
        return len(self.starts)

    def case(self, index: int) -> Case:
        """Return one case, or raise that the file is no longer what was checked."""
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            raw = file.readline()
        if zlib.crc32(raw) != self.sums[index]:
            raise BadInput(f"data='{self.path}', line {self.numbers[index]}: the file was changed while it was in use.")
        return parse(raw, self.path, self.numbers[index], self.metric)


def scan(path: str | Path, metric: str | None = None) -> Lines:
    """Check every line of a file.

    Args:
        metric: that of lines that name none; None: ``choice`` where there are choices, ``contains`` elsewhere.

    Raises:
        BadInput: no such file, one without a case, or the first line that is not a case, with its number and the
            reason; an unknown metric; lines whose marks have no common scale.
    """
    path = Path(path).expanduser()
    if metric is not None and metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    given: Metric | None = metric
    starts, numbers, sums = array("Q"), array("Q"), array("Q")
    digest, seen = hashlib.sha256(f"metric={metric}\n".encode()), set[Path]()
    graded: dict[bool, int] = {}
    pictured = 0
    for start, number, raw in _raw(path):
        digest.update(raw)
        if not raw.removeprefix(BOM).strip():
            continue
        case = parse(raw, path, number, given)
        graded.setdefault(case.metric == "likelihood", number)
        pictured = pictured or (number if case.images else 0)
        for image in case.images:
            if image not in seen:
                digest.update(_picture(image, path, number))
                seen.add(image)
        starts.append(start)
        numbers.append(number)
        sums.append(zlib.crc32(raw))
    if not starts:
        raise BadInput(f"data='{path}' is empty: give a case a line, such as {_EXAMPLE}.")
    if len(graded) > 1:
        raise BadInput(
            f"data='{path}': line {graded[True]} is marked in nats (likelihood), line {graded[False]} from 0 to 1; "
            "their mean says nothing: put them into two files."
        )
    return Lines(path, given, starts, numbers, sums, digest.hexdigest(), pictured, True in graded)


def parse(raw: bytes, path: Path, number: int, metric: Metric | None = None) -> Case:
    """Return the case that line ``number`` holds, or raise what is wrong with it."""

    def wrong(reason: str) -> NoReturn:
        raise BadInput(f"data='{path}', line {number}: {reason}")

    told = _object(raw, wrong)
    for key in told:
        if key not in KEYS:
            wrong(f"{key!r} is not known.{nearest(key, KEYS)} Possible: {', '.join(KEYS)}.")
    asked = [key for key in ASKED if key in told]
    if len(asked) != 1:
        both = f"{' and '.join(asked)} were both given" if asked else "there is no prompt"
        wrong(f"{both}: give one of {', '.join(ASKED)}.")
    messages = _messages(told["messages"], wrong) if "messages" in told else ()
    prompt = messages[-1][1] if messages else _text(told[asked[0]], asked[0], wrong)
    choices = _texts(told["choices"], "choices", wrong) if "choices" in told else ()
    if "choices" in told and (len(choices) < 2 or len(set(choices)) < len(choices)):
        wrong("choices must be at least two, and different.")
    if "answer" not in told:
        wrong("there is no answer: give the right one, or a list of right ones.")
    answers = _texts(told["answer"], "answer", wrong)
    for answer in answers if choices else ():
        if answer not in choices:
            wrong(f"answer={_short(answer)} is not one of the choices.{nearest(answer, choices)}")
    chosen = told.get("metric", metric or ("choice" if choices else "contains"))
    if chosen not in METRICS:
        wrong(str(unknown("metric", chosen, METRICS)))
    if chosen == "choice" and not choices:
        wrong("metric='choice' needs choices: a list of options, the answer among them.")
    room, name = told.get("max_new_tokens", ROOM), told.get("id", "")
    if type(room) is not int or room < 1:
        wrong(f"max_new_tokens={_short(room)}: give a whole number, at least 1.")
    if type(name) not in (str, int):
        wrong(f"id={_short(name)}: give a text or a whole number.")
    return Case(
        line=number,
        prompt=prompt,
        answers=answers,
        metric=chosen,
        context=_text(told["context"], "context", wrong, empty=True) if "context" in told else "",
        messages=messages,
        choices=choices,
        images=_images(told["images"], path, wrong) if "images" in told else (),
        room=room,
        name=str(name),
    )


_EXAMPLE = '{"context": "…", "prompt": "…", "answer": "…"}'


def _raw(path: Path) -> Iterator[tuple[int, int, bytes]]:
    try:
        with path.open("rb") as file:
            start = 0
            for number, raw in enumerate(file, 1):
                yield start, number, raw
                start += len(raw)
    except FileNotFoundError as error:
        raise BadInput(f"data='{path}' does not exist.") from error
    except OSError as error:
        raise BadInput(f"data='{path}' cannot be read: {error.strerror}.") from error


def _object(raw: bytes, wrong: Any) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                wrong(f"{key!r} is given twice.")
            found[key] = value
        return found

    try:
        text = raw.removeprefix(BOM).decode("utf-8")
        told = json.loads(text, object_pairs_hook=once)
    except UnicodeDecodeError as error:
        wrong(f"byte {error.start + 1} is not UTF-8.")
    except json.JSONDecodeError as error:
        wrong(f"no JSON: {error.msg} at character {error.pos + 1}.")
    except (RecursionError, ValueError) as error:
        wrong(f"no JSON that could be read: {error}.")
    if not isinstance(told, dict):
        wrong(f"{_short(told)} is no case: give one JSON object a line, such as {_EXAMPLE}.")
    return cast("dict[str, Any]", told)


def _text(value: Any, key: str, wrong: Any, empty: bool = False) -> str:
    if not isinstance(value, str):
        hint = f': give "{value}"' if type(value) in (int, float) else ""
        wrong(f"{key}={_short(value)} is not a text{hint}.")
    if not value.strip() and not empty:
        wrong(f"{key} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError:
        wrong(f"{key} holds half a character (a lone surrogate).")
    return str(value) if value.strip() else ""


def _texts(value: Any, key: str, wrong: Any) -> tuple[str, ...]:
    many = value if isinstance(value, list) else [value]
    if not many:
        wrong(f"{key} is empty.")
    return tuple(_text(one, key, wrong) for one in many)


def _messages(value: Any, wrong: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        wrong('messages must be a list such as [{"role": "user", "content": "…"}].')
    found = []
    for one in value:
        if not isinstance(one, dict) or set(one) != {"role", "content"}:
            wrong(f"messages: {_short(one)} must have a role and a content, and nothing else; pictures go into images.")
        if one["role"] not in ROLES:
            wrong(str(unknown("role", one["role"], ROLES)))
        found.append((one["role"], _text(one["content"], "content", wrong)))
    if found[-1][0] != "user":
        wrong(f"messages end with the {found[-1][0]}'s: the last must be the user's, for the model to answer.")
    return tuple(found)


def _images(value: Any, path: Path, wrong: Any) -> tuple[Path, ...]:
    found = tuple(path.parent / name for name in _texts(value, "images", wrong))
    for image in found:
        if not image.is_file():
            wrong(f"image='{image}' {'is a folder' if image.is_dir() else 'does not exist'}.")
    return found


def _picture(image: Path, path: Path, number: int) -> bytes:
    from PIL import Image

    try:
        with Image.open(image):
            return hashlib.sha256(image.read_bytes()).digest()
    except Exception as error:
        raise BadInput(f"data='{path}', line {number}: image='{image}' cannot be read as a picture: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
