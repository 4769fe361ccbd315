"""Recall: one fact in a long context and one question, or many facts and several questions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tithe.bench.prompt import Ask, Prompt, check_window, from_ids, tokenizer_of
from tithe.bench.robust import against, shuffled_case
from tithe.bench.tasks.base import Questions, Setting, Task
from tithe.bench.tasks.recall import recall_case
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded


@dataclass(frozen=True)
class Recall(Questions):
    """``facts`` lines among ``setting.length`` tokens of code, ``asked`` of them asked for; both values count.

    Variants: ``shuffled``, the same facts in another order and at other places of the same code; ``robust``, both at
    once, and how far an answer depends on it.
    """

    name: str
    facts: int
    asked: int
    kind: HostKind = "llm"
    sized: bool = True
    shuffled: bool = False

    def variant(self, name: str) -> Task | None:
        """Return the task whose facts were moved, or the comparison with it."""
        if name == "shuffled":
            return replace(self, name=f"{self.name}@shuffled", shuffled=True)
        return against(self, "shuffled") if name == "robust" else None

    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return one context, with the questions about it."""
        tokenizer = tokenizer_of(loaded)
        try:
            case = recall_case(tokenizer, length=setting.length, facts=self.facts, asked=self.asked, seed=seed)
            case = shuffled_case(tokenizer, case, seed) if self.shuffled else case
        except ValueError as error:
            raise BadInput(f"task={self.name!r}, length={setting.length}: {error}") from error
        asks = []
        for question, answer, fact in zip(case.questions, case.answers, case.asked, strict=True):
            ids = tuple(tokenizer(question, add_special_tokens=False)["input_ids"])
            room = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
            check_window(loaded.model, setting.length + len(ids) + room)
            depth = case.spans[fact][0] / setting.length
            asks.append(Ask(ids, question, answer.strip(), room, depth=depth))
        return Prompt(from_ids(loaded.model, case.ids), tuple(asks))


NEEDLE = Recall("needle", facts=1, asked=1)
MULTIKEY = Recall("multikey", facts=12, asked=4)
