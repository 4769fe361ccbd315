"""A task made of cases of one's own, from a file of JSON lines; see `tithe.bench.data` for what a line holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL.Image import Image

from tithe.bench import marking
from tithe.bench.ask import Attach, ask, holds_keys
from tithe.bench.data import Case, Lines, scan
from tithe.bench.likelihood import Likelihood, behind, last_apart
from tithe.bench.prompt import (
    Ask,
    Inputs,
    Prompt,
    check_window,
    compose,
    joined,
    on_device,
    once_led,
    read_image,
    tokenizer_of,
)
from tithe.bench.tasks.base import Answer, Marked, Setting, Task, decoded
from tithe.bench.visual import album
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

READS: tuple[HostKind, ...] = ("llm", "vlm", "ssm")
TAIL, SHOWN = 8, 200
MARK = "\ue000"


@dataclass(frozen=True)
class Own(Task):
    """The cases of a file, in an order drawn from the seed, each at most once.

    The quality of a case: 0 to 1 by its metric, against the best of several answers. ``choice`` is 1 where the right
    option is the likeliest per character, the Language Model Evaluation Harness's ``acc_norm``; ``extras`` hold that
    and ``acc``, the same by the likelihood of the whole option. ``likelihood`` is nats per token of the answer, at most
    0. For both of these, the last token of the prompt is read behind what is left of the rest, and the options follow
    it token by token (a state-space model reads the prompt whole).
    """

    name: str
    lines: Lines
    kind: HostKind = "llm"
    positions: bool = True
    size: int | None = field(default=None, kw_only=True)
    digest: str = field(default="", kw_only=True)

    def fit(self, kind: HostKind) -> Own:
        """Return the task for a model of ``kind``, or raise that the model cannot read the file."""
        if kind not in READS:
            raise BadInput(f"data='{self.lines.path}': a {kind} answers no questions; give a model that writes.")
        if self.lines.pictured and kind != "vlm":
            place = f"data='{self.lines.path}', line {self.lines.pictured}"
            raise BadInput(f"{place}: images were given, but the model reads text only.")
        return replace(self, kind=kind)

    def case(self, setting: Setting, number: int) -> Case:
        """Return case ``number`` of those that the seed of ``setting`` draws."""
        order = np.random.Generator(np.random.PCG64(setting.seed)).permutation(len(self.lines))
        return self.lines.case(int(order[number]))

    def check(self, loaded: Loaded, setting: Setting) -> None:
        """Compose every case that will be asked, so that none is refused halfway."""
        self.fit(loaded.kind)
        for cases in self.batches(setting.n):
            for number in cases:
                self._composed(loaded, setting, self.case(setting, number))

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Ask or score ``cases`` one by one, so that each cost is that of one user."""
        return [self._marked(loaded, attach, setting, number) for number in cases]

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the first case drawn, question included."""
        prompt, _ = self._composed(loaded, setting, self.case(setting, 0))
        return joined(prompt.inputs, prompt.asks[0].ids)

    def prompts(self, loaded: Loaded, setting: Setting) -> Iterator[Prompt]:
        """Yield the cases as prompts to be answered in writing, or raise that one is not."""
        for cases in self.batches(setting.n):
            for number in cases:
                case = self.case(setting, number)
                if not case.written:
                    place = f"data='{self.lines.path}', line {case.line}"
                    raise BadInput(f"{place}: metric={case.metric!r} has the model write nothing; give another metric.")
                yield self._composed(loaded, setting, case)[0]

    def _marked(self, loaded: Loaded, attach: Attach, setting: Setting, number: int) -> Marked:
        case = self.case(setting, number)
        prompt, options = self._composed(loaded, setting, case)
        if not case.written:
            found = _scored(loaded.model, prompt, options, attach, setting)
            return (_picked if case.metric == "choice" else _likely)(number, case, options, found)
        (one,), (reply,) = prompt.asks, ask(loaded.model, prompt, attach, setting.question)
        given = decoded(loaded, reply.ids)
        answer = _answer(case, given, one.mark(given) if one.mark is not None else 0.0)
        return Marked(number, answer.score, (answer,), reply.figures, ids=(reply.ids,), logs=(reply.logs,))

    def _composed(self, loaded: Loaded, setting: Setting, case: Case) -> tuple[Prompt, list[tuple[int, ...]]]:
        """Return a case as a prompt, and the tokens of the options or answers that are scored behind it."""
        try:
            if setting.question == "after" and not case.askable:
                raise BadInput("question='after' needs something to read first: give the line a context.")
            prompt, gap = composed(loaded, case)
            if setting.question == "after" and not prompt.asks[0].ids:
                raise BadInput("question='after': the chat template does not show the last message as it is.")
            whole = joined(prompt.inputs, prompt.asks[0].ids)
            options = [
                continuation(tokenizer_of(loaded), whole, gap, text)
                for text in (() if case.written else case.choices if case.metric == "choice" else case.answers)
            ]
            check_window(loaded.model, whole["input_ids"].shape[1] + max(map(len, options), default=case.room))
        except BadInput as error:
            raise BadInput(f"data='{self.lines.path}', line {case.line}: {error}") from error
        return prompt, options


def load(path: str | Path, metric: str | None = None) -> Own:
    """Return the task of a file, named like it; ``fit`` it to the model before use.

    Args:
        metric: that of lines that name none; None: ``choice`` where there are choices, ``contains`` elsewhere.

    Raises:
        BadInput: what is wrong with the file, with the number of the line.
    """
    lines = scan(path, metric)
    return Own(lines.path.stem, lines, "vlm" if lines.pictured else "llm", size=len(lines), digest=lines.digest)


def composed(loaded: Loaded, case: Case) -> tuple[Prompt, str]:
    """Return a case as a prompt, and what stands between it and a continuation.

    The context holds the pictures and the text to be read first; messages are one context up to the last one's text. A
    checkpoint's chat template is applied, a prompt being one message of the user. Without one, a continuation follows
    behind the white space that ends the prompt, or behind one space; white space goes with the continuation, as
    tokenizers have it.

    Raises:
        BadInput: messages for a model without a chat template, or one that refuses them; a prompt beyond the window.
    """
    pictures = [read_image(image) for image in case.images]
    if not getattr(loaded.processor, "chat_template", None):
        return _plain(loaded, case, pictures)
    if len(pictures) < 2 or case.messages:
        return _chat(loaded, case, pictures), ""
    made = album(loaded, pictures, text=case.context, question=case.prompt, room=_room(case))
    return _to_ask(case, made.inputs, made.asks[0].ids), ""


def continuation(tokenizer: Any, inputs: Inputs, gap: str, text: str) -> tuple[int, ...]:
    """Return the tokens of ``gap`` and ``text`` as they follow ``inputs``.

    They are those that the whole has behind the prompt's own, as in the Language Model Evaluation Harness, so that a
    tokenizer which marks the start of a text does not mark it here.
    """
    if text[0].isspace() or marking.unspaced(text[0]):
        gap = gap if gap != " " else ""
    tail = tokenizer.decode(inputs["input_ids"][0, -TAIL:].tolist(), clean_up_tokenization_spaces=False)
    base, whole, alone = (
        tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (tail, tail + gap + text, gap + text)
    )
    found = whole[len(base) :] if whole[: len(base)] == base else alone
    if not found:
        raise BadInput(f"{text!r} has no token of its own in this model.")
    return found


def _scored(
    model: Any, prompt: Prompt, options: list[tuple[int, ...]], attach: Attach, setting: Setting
) -> list[Likelihood]:
    inputs, question = prompt.inputs, prompt.asks[0].ids
    if setting.question == "after":
        return behind(model, inputs, options, attach, "after", question)
    whole = joined(inputs, question)
    if not holds_keys(model) or whole["input_ids"].shape[1] < 2:
        return behind(model, whole, options, attach)
    rest, last = last_apart(whole)
    return behind(model, rest, options, attach, "after", last)


def _picked(number: int, case: Case, options: list[tuple[int, ...]], found: list[Likelihood]) -> Marked:
    raw = [one.total for one in found]
    per_character = [total / len(text) for total, text in zip(raw, case.choices, strict=True)]
    picked, sure = (case.choices[int(np.argmax(scores))] for scores in (per_character, raw))
    score = float(picked in case.answers)
    right = case.choices.index(case.answers[0])
    return Marked(
        number,
        score,
        (_answer(case, picked, score),),
        found[right].figures,
        {"acc": float(sure in case.answers), "acc_norm": score},
        (options[right],),
        (found[right].logs,),
    )


def _likely(number: int, case: Case, options: list[tuple[int, ...]], found: list[Likelihood]) -> Marked:
    best = max(one.mean for one in found)
    return Marked(number, best, (), found[0].figures, ids=(options[0],), logs=(found[0].logs,))


def _answer(case: Case, given: str, score: float) -> Answer:
    asked = case.prompt if len(case.prompt) <= SHOWN else case.prompt[: SHOWN - 1] + "…"
    return Answer(f"{case.name}: {asked}" if case.name else asked, " | ".join(case.answers), given, score)


def _to_ask(case: Case, inputs: Inputs, ids: tuple[int, ...]) -> Prompt:
    def mark(given: str) -> float:
        how = getattr(marking, case.metric)
        return float(max(how(given, answer) for answer in case.answers))

    return Prompt(inputs, (Ask(ids, case.prompt, case.answers[0], _room(case), mark if case.written else None),))


def _room(case: Case) -> int:
    return case.room if case.written else 0


def _plain(loaded: Loaded, case: Case, pictures: list[Image]) -> tuple[Prompt, str]:
    if case.messages:
        raise BadInput("this model has no chat template for messages: give context and prompt.")
    prompt, gap = case.prompt, ""
    if not case.written:
        prompt = case.prompt.rstrip()
        gap = case.prompt[len(prompt) :] or " "
    if len(pictures) > 1:
        made = album(loaded, pictures, text=case.context, question=prompt, room=_room(case))
    else:
        text, question = (case.context, prompt) if case.context else (prompt, "")
        picture = pictures[0] if pictures else None
        made = compose(loaded, text=text, image=picture, question=question, room=_room(case))
    return _to_ask(case, made.inputs, made.asks[0].ids), gap


def _chat(loaded: Loaded, case: Case, pictures: list[Image]) -> Prompt:
    """Return a chat as a prompt, its context ending where the prompt of the last message begins."""
    said = list(case.messages) or [("user", case.prompt)]
    place = next(at for at, (role, _) in enumerate(said) if role == "user")

    def rendered(prompt: str) -> str:
        last = f"{case.context}\n{prompt}" if case.context else prompt
        messages: list[dict[str, Any]] = [
            {"role": role, "content": content} for role, content in (*said[:-1], (said[-1][0], last))
        ]
        for at, message in enumerate(messages if loaded.kind == "vlm" else ()):
            seen = [{"type": "image"} for _ in pictures] if at == place else []
            message["content"] = [*seen, {"type": "text", "text": message["content"]}]
        try:
            return str(loaded.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise BadInput(f"the model's chat template refuses the messages: {error}") from error

    # A short prompt may stand anywhere in what a template adds: only a mark of one's own tells where it begins.
    whole, mark = rendered(case.prompt), MARK
    while mark in whole:
        mark += MARK
    before = rendered(mark).partition(mark)[0]
    before = before if whole.startswith(before + case.prompt.strip()) else whole
    tokenizer = tokenizer_of(loaded)
    if pictures:
        led = once_led(tokenizer, before)
        batch = loaded.processor(images=[pictures], text=[before], return_tensors="pt", **led)
    else:
        batch = tokenizer([before], add_special_tokens=False, return_tensors="pt")
    after = whole[len(before) :]
    ids = tuple(tokenizer(after, add_special_tokens=False)["input_ids"]) if after else ()
    return _to_ask(case, on_device(loaded, batch), ids)
