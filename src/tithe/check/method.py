"""What every method must do, whatever it is; capabilities come from its card and steps, never from its name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tithe import catalogue
from tithe.check.answers import answer
from tithe.flow import Run, on
from tithe.hosts import find
from tithe.types import Method

TOLERANCE = 5e-5


@dataclass(frozen=True)
class Outcome:
    """What a model gave: ``logits`` of every step (or of the classes), ``tokens`` generated (None for a classifier)."""

    logits: Tensor
    tokens: Tensor | None

    def same(self, other: Outcome, tolerance: float) -> bool:
        """Whether two outcomes agree."""
        if self.logits.shape != other.logits.shape:
            return False
        if self.tokens is not None and other.tokens is not None and not torch.equal(self.tokens, other.tokens):
            return False
        return bool((self.logits.float() - other.logits.float()).abs().max() <= tolerance)

    def row(self, index: int) -> Outcome:
        """One row of the batch."""
        tokens = self.tokens[index : index + 1] if self.tokens is not None else None
        return Outcome(self.logits[index : index + 1], tokens)


def outcome(model: PreTrainedModel, inputs: dict[str, Any], new: int = 6) -> Outcome:
    """Generate ``new`` tokens greedily, or classify."""
    with torch.no_grad():
        if find(model).kind in ("vla", "vggt"):
            return Outcome(answer(model, inputs), None)
        if find(model).text is None:
            return Outcome(model(**inputs).logits, None)
        width = inputs["input_ids"].shape[1]
        out = model.generate(
            **inputs,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.config.get_text_config().pad_token_id or 0,
        )
    return Outcome(torch.stack(out.logits, 1), out.sequences[:, width:])


def check_method(
    method: str, model: PreTrainedModel, inputs: dict[str, Any], *, keep: float = 0.4, **params: Any
) -> list[str]:
    """Run ``method`` through the contract on ``model``; raise ``AssertionError`` naming the check that failed.

    Args:
        inputs: two rows or more, left-padded where they differ; what ``model.generate`` (or a classifier) takes.
        keep: a budget at which the method must drop something.

    Returns:
        The names of the checks that were run.
    """
    suite = Suite(method, model, inputs, keep, params)
    done = []
    for check in suite.checks():
        check()
        done.append(check.__name__)
    return done


class Suite:
    """The checks of one method on one model."""

    def __init__(
        self, method: str, model: PreTrainedModel, inputs: dict[str, Any], keep: float, params: dict[str, Any]
    ) -> None:
        self.factory = catalogue.get(method)
        self.model, self.inputs, self.keep, self.params = model, inputs, keep, params
        self.acts = any(step.action is not None for step in self.method().steps)
        self.text = find(model).text is not None
        self.plain = outcome(model, inputs)

    def checks(self) -> list[Callable[[], None]]:
        """The checks that apply, by the method's parameters, steps and host."""
        found: list[Callable[[], None]] = [
            self.restores,
            self.restores_after_error,
            self.repeats,
            self.runs_in_bfloat16,
        ]
        if self.factory.card.saving == "none" and not self.acts:
            return [*found, self.leaves_output, self.has_scores]
        found += [self.has_effect, self.equals_one_by_one]
        if self.text and find(self.model).kind not in ("ssm", "vla"):
            found += [self.goes_on]
        if "keep" in self.factory.parameters:
            found += [self.keeps_all, self.keeps_at_least_one]
        return found

    def method(self, keep: float | int | None = None) -> Method:
        """The method at a budget."""
        params = dict(self.params)
        if "keep" in self.factory.parameters:
            params["keep"] = self.keep if keep is None else keep
        return self.factory(**params)

    def run(self, keep: float | int | None = None, inputs: dict[str, Any] | None = None) -> tuple[Outcome, Run]:
        """Attach, run, detach."""
        with on(self.model, self.method(keep), level="kept") as run:
            return outcome(self.model, inputs or self.inputs), run

    def fail(self, check: str, detail: str) -> None:
        """Raise for ``check``."""
        raise AssertionError(f"{self.factory.card.slug}: {check}: {detail}")

    def keeps_all(self) -> None:
        """With everything kept the model is the untouched one."""
        got, _ = self.run(1.0)
        if not got.same(self.plain, TOLERANCE):
            self.fail("keeps_all", f"logits differ by {(got.logits - self.plain.logits).abs().max():.2e} at keep=1.0")

    def leaves_output(self) -> None:
        """A method that only scores does not change what the model gives."""
        got, _ = self.run()
        if not got.same(self.plain, TOLERANCE):
            self.fail("leaves_output", "the output changed")

    def has_scores(self) -> None:
        """A method that only scores leaves finite scores, not all alike."""
        with on(self.model, self.method(), level="scores") as run:
            outcome(self.model, self.inputs)
        scored = [event.scores for event in run.trace.events if event.scores is not None]
        if not scored or not any(s[torch.isfinite(s)].unique().numel() > 1 for s in scored):
            self.fail("has_scores", "no step left scores that differ")

    def has_effect(self) -> None:
        """Tokens are dropped, merged, unread or packed: by counts, and by bytes where memory is freed."""
        got, run = self.run()
        report = run.report()
        fewer = any(sum(event.kept) < sum(event.seen) for event in run.trace.events)
        packed = self.text and report.kv_live < report.kv_full
        if self.factory.card.saving != "none" and not fewer and not packed:
            self.fail("has_effect", f"nothing was dropped at keep={self.keep}")
        if got.same(self.plain, 0.0):
            self.fail("has_effect", "the output is bit-identical to the untouched model's")

    def restores(self) -> None:
        """After detaching the model gives exactly what it gave."""
        self.run()
        if not outcome(self.model, self.inputs).same(self.plain, 0.0):
            self.fail("restores", "the output differs after detach()")

    def restores_after_error(self) -> None:
        """After an exception in the middle of a forward too."""

        class Interrupted(Exception):
            pass

        def interrupt(*_: Any) -> None:
            raise Interrupted

        host = find(self.model)
        layers = host.layers or (host.vision.layers if host.vision else ())
        handle = layers[-1].register_forward_hook(interrupt)
        try:
            self.run()
        except Interrupted:
            pass
        finally:
            handle.remove()
        if not outcome(self.model, self.inputs).same(self.plain, 0.0):
            self.fail("restores_after_error", "the output differs after an exception")

    def repeats(self) -> None:
        """The same seed gives the same result, in a new run and again in the same run."""
        first, _ = self.run()
        with on(self.model, self.method(), level="kept") as run:
            second = outcome(self.model, self.inputs)
            run.reset()
            third = outcome(self.model, self.inputs)
        if not (first.same(second, 0.0) and first.same(third, 0.0)):
            self.fail("repeats", "two runs on the same input differ")

    def runs_in_bfloat16(self) -> None:
        """Half precision runs and stays finite."""
        own, self.model = self.model, copy.deepcopy(self.model).to(torch.bfloat16)
        inputs = {n: v.to(torch.bfloat16) if v.is_floating_point() else v for n, v in self.inputs.items()}
        try:
            got, _ = self.run(inputs=inputs)
        finally:
            self.model = own
        if not bool(torch.isfinite(got.logits).all()):
            self.fail("runs_in_bfloat16", "logits are not finite")

    def equals_one_by_one(self) -> None:
        """A row in a padded batch gives what it gives alone."""
        together, _ = self.run()
        for row in range(together.logits.shape[0]):
            alone, _ = self.run(inputs=alone_of(self.inputs, row))
            if not together.row(row).same(alone, TOLERANCE):
                gap = (together.row(row).logits - alone.logits).abs().max()
                self.fail("equals_one_by_one", f"row {row} differs from the row alone by {gap:.2e}")

    def goes_on(self) -> None:
        """A second turn on the same cache runs; with everything kept it is the untouched model's second turn."""
        keep = 1.0 if "keep" in self.factory.parameters else None
        for budget in (keep, self.keep):
            with on(self.model, self.method(budget)):
                got = turns(self.model, self.inputs)
            if not bool(torch.isfinite(got.logits).all()):
                self.fail("goes_on", "logits of the second turn are not finite")
            if budget == 1.0 and not got.same(turns(self.model, self.inputs), TOLERANCE):
                self.fail("goes_on", "the second turn differs from the untouched model's at keep=1.0")

    def keeps_at_least_one(self) -> None:
        """However small the budget, a token stays, and the model still answers with finite numbers."""
        got, run = self.run(1e-6)
        fewest = min((min(event.kept) for event in run.trace.events), default=1)
        if fewest < 1 or not bool(torch.isfinite(got.logits).all()):
            self.fail("keeps_at_least_one", f"{fewest} tokens kept at keep=1e-6")


def turns(model: PreTrainedModel, inputs: dict[str, Any], new: int = 3) -> Outcome:
    """Generate, then ask with five more tokens on the same cache, and generate again."""
    common: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "pad_token_id": model.config.get_text_config().pad_token_id or 0,
    }
    with torch.no_grad():
        first = model.generate(**inputs, **common)
        rows = first.sequences.shape[0]
        ids = torch.cat([first.sequences, torch.full((rows, 5), int(inputs["input_ids"][0, -1]))], 1)
        mask = inputs["attention_mask"]
        mask = torch.cat([mask, mask.new_ones(rows, ids.shape[1] - mask.shape[1])], 1)
        out = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **common)
    return Outcome(torch.stack(out.logits, 1), out.sequences[:, ids.shape[1] :])


def alone_of(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """Return one row without its left padding."""
    one = {name: value[row : row + 1] for name, value in inputs.items()}
    mask = one.get("attention_mask")
    if mask is None:
        return one
    start = int(mask[0].argmax())
    along = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")
    return {name: value[:, start:] if name in along else value for name, value in one.items()}
