"""The model ``tithe`` of lm-evaluation-harness: its Hugging Face model with methods attached while it reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from tithe.bench.ask import new_cache, read
from tithe.errors import BadInput, Refused
from tithe.flow import Run, on
from tithe.harness import arguments
from tithe.harness.effect import Effect
from tithe.harness.scoring import Ids, Score, batches, continuations, cut

# what transformers' from_pretrained takes beyond the harness's own arguments, and is of use here
LOADING = ("attn_implementation",)
Request = tuple[Any, list[int], list[int]]


@register_model("tithe")
class TitheLM(HFLM):
    """``HFLM`` under methods; without one it is ``HFLM`` itself.

    ``after``: tokens at the end of a prompt that are read once the rest was compressed; by default none when
    generating, as ``tithe.on`` does, and one when continuations are scored, so that no option is scored by the
    untouched model (see ``scoring``). A document without a context (``loglikelihood_rolling``) is refused under a
    method, because nothing would be dropped before its tokens are scored.

    Raises:
        BadInput: an unknown argument, or a value out of its range.
        Refused: a model that a method cannot serve.
    """

    def __init__(self, pretrained: Any, **given: Any) -> None:
        known = {*inspect.signature(HFLM.__init__).parameters, *LOADING} - {"self", "kwargs", "pretrained"}
        found = arguments.read(given, known)
        if isinstance(pretrained, str):
            pretrained = arguments.place(pretrained)
            found.rest.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
            found.rest["use_safetensors"] = True
        super().__init__(pretrained=pretrained, **found.rest)
        self.methods, self.after, self.effect = found.methods, found.after, Effect(found.label)
        if self.methods:
            on(self.model, self.methods).detach()

    @contextmanager
    def _acting(self, rows: int) -> Iterator[Run]:
        with on(self.model, self.methods) as run:
            yield run
            self.effect.note(run, rows)

    @torch.no_grad()
    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        if not self.methods:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        with self._acting(context.shape[0]) as run:
            if self.after:
                mask = generation_kwargs["attention_mask"]
                shortest = int(mask.sum(-1).min())
                if shortest <= self.after:
                    raise BadInput(f"after={self.after}: a prompt has only {shortest} tokens.")
                cache = generation_kwargs["past_key_values"] = new_cache(self.model)
                head = {"input_ids": context[:, : -self.after], "attention_mask": mask[:, : -self.after]}
                read(self.model, head, cache, run)
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log-likelihoods of documents; refused under a method."""
        if self.methods:
            raise Refused(
                f"{self.effect.label}: loglikelihood_rolling scores documents that have no context, so nothing could "
                "be dropped before they are scored; use tasks that generate or choose, or `tithe bench --task lm`."
            )
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not self.methods:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        pairs = [cut(context, option, self.max_length) for _, context, option in requests]
        asked: dict[Ids, dict[Ids, None]] = {}
        for context, option in pairs:
            asked.setdefault(context, {})[option] = None
        size = override_bs or (self._detect_batch_size() if self.batch_size == "auto" else self.batch_size)
        bar = tqdm(total=len(asked), disable=disable_tqdm or self.rank != 0, desc="Reading and compressing contexts")
        found: dict[tuple[Ids, Ids], Score] = {}
        for batch in batches({c: max(map(len, options)) for c, options in asked.items()}, size, self.max_length):
            rows = [tuple(asked[context]) for context in batch]
            after = 1 if self.after is None else self.after
            acting = partial(self._acting, len(batch))
            scores = continuations(self.model, batch, rows, acting, after, self.softmax_dtype)
            for context, options, row in zip(batch, rows, scores, strict=True):
                found.update({(context, option): score for option, score in zip(options, row, strict=True)})
            bar.update(len(batch))
        bar.close()
        answers = [(found[pair].total, found[pair].greedy) for pair in pairs]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside its results, and what the methods did while they were made."""
        return {**super().get_model_info(), "tithe": self.effect.summary()}
