"""What every text host must do under eviction, in every way of calling it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tithe.check.oracle import dense_logits, hidden_columns
from tithe.flow import Run, on
from tithe.hosts import find

TOLERANCE = 1e-4
Scenario = str
SCENARIOS: tuple[Scenario, ...] = (
    "single",
    "padded",
    "second_turn",
    "beams",
    "sampling",
    "question_after",
    "chunked_prefill",
)


def check_host(
    model: PreTrainedModel, method: Any, scenario: Scenario, *, vocab: int = 96, seed: int = 0, length: int = 40
) -> float:
    """Run ``method`` in one scenario and compare every logit with the masked oracle; return the largest difference.

    Raises ``AssertionError`` where it exceeds the tolerance, or where nothing was dropped.
    """
    case = Case(model, method, vocab, seed, length)
    gap = getattr(case, scenario)()
    if gap > TOLERANCE:
        raise AssertionError(
            f"{model.config.model_type}, {scenario}: logits differ from the masked oracle by {gap:.2e}"
        )
    return gap


class Case:
    """One model, one method, one seed; each scenario returns the largest difference to the oracle."""

    def __init__(self, model: PreTrainedModel, method: Any, vocab: int, seed: int, length: int) -> None:
        self.model, self.method, self.length = model, method, length
        draw = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(5, vocab, (2, length), generator=draw)
        self.turn = torch.randint(5, vocab, (2, 7), generator=draw)
        self.mask = torch.ones_like(self.ids)
        self.padded_mask = self.mask.clone()
        self.padded_mask[1, : length // 4] = 0
        self.common: dict[str, Any] = {
            "max_new_tokens": 5,
            "min_new_tokens": 5,
            "output_logits": True,
            "return_dict_in_generate": True,
            "pad_token_id": 0,
        }

    def single(self) -> float:
        """One prompt, greedy."""
        return self._generate(self.ids[:1], self.mask[:1], do_sample=False)

    def padded(self) -> float:
        """A left-padded batch."""
        return self._generate(self.ids, self.padded_mask, do_sample=False)

    def sampling(self) -> float:
        """Sampled."""
        torch.manual_seed(1)
        return self._generate(self.ids, self.padded_mask, do_sample=True, temperature=1.3)

    def chunked_prefill(self) -> float:
        """The prompt in chunks of 16."""
        return self._generate(self.ids, self.padded_mask, do_sample=False, prefill_chunk_size=16)

    def beams(self) -> float:
        """Beam search: the score of each returned sequence is the oracle's."""
        with on(self.model, self.method, level="history") as run, torch.no_grad():
            out = self.model.generate(
                self.ids,
                attention_mask=self.padded_mask,
                num_beams=3,
                do_sample=False,
                length_penalty=0.0,
                output_scores=True,
                **self.common,
            )
        rows = torch.arange(2) * 3
        logits = self._oracle(run, out.sequences, self.padded_mask, rows)[:, self.length - 1 : -1]
        picked = logits.log_softmax(-1).gather(2, out.sequences[:, self.length :, None])[..., 0].sum(-1)
        return float((picked - out.sequences_scores).abs().max())

    def second_turn(self) -> float:
        """A second question on the same cache."""
        with on(self.model, self.method, level="history") as run, torch.no_grad():
            first = self.model.generate(
                self.ids, attention_mask=self.padded_mask, do_sample=False, use_cache=True, **self.common
            )
            ids = torch.cat([first.sequences, self.turn], 1)
            mask = _grown(self.padded_mask, ids.shape[1])
            out = self.model.generate(
                ids, attention_mask=mask, past_key_values=first.past_key_values, do_sample=False, **self.common
            )
        start = ids.shape[1]
        return self._compare(run, out, mask, start)

    def question_after(self) -> float:
        """Compress the context, then ask with several tokens."""
        with on(self.model, self.method, level="history") as run, torch.no_grad():
            with run.prefill():
                first = self.model(input_ids=self.ids, attention_mask=self.padded_mask, use_cache=True)
            ids = torch.cat([self.ids, self.turn], 1)
            mask = _grown(self.padded_mask, ids.shape[1])
            out = self.model.generate(
                ids, attention_mask=mask, past_key_values=first.past_key_values, do_sample=False, **self.common
            )
        return self._compare(run, out, mask, ids.shape[1])

    def _generate(self, ids: Tensor, mask: Tensor, **kwargs: Any) -> float:
        with on(self.model, self.method, level="history") as run, torch.no_grad():
            out = self.model.generate(ids, attention_mask=mask, **self.common, **kwargs)
        return self._compare(run, out, mask, ids.shape[1])

    def _compare(self, run: Run, out: Any, mask: Tensor, start: int) -> float:
        reference = self._oracle(run, out.sequences, mask)[:, start - 1 : -1]
        return float((torch.stack(out.logits, 1) - reference).abs().max())

    def _oracle(self, run: Run, sequences: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        config = find(self.model).config
        events = run.trace.history
        if not any(sum(event.kept) < sum(event.seen) for event in events):
            raise AssertionError(f"{self.model.config.model_type}: nothing was dropped")
        count = sequences.shape[0] if rows is None else max(int(rows.max()) + 3, 1)
        hidden = hidden_columns(events, count, config.num_hidden_layers, config.num_attention_heads, sequences.shape[1])
        hidden = hidden if rows is None else hidden[:, rows]
        full = _grown(mask, sequences.shape[1])
        positions = (full.cumsum(-1) - 1).clamp(min=0)
        return dense_logits(
            self.model, {"input_ids": sequences, "attention_mask": full, "position_ids": positions}, hidden
        )


def _grown(mask: Tensor, width: int) -> Tensor:
    return torch.cat([mask, mask.new_ones(mask.shape[0], width - mask.shape[1])], 1)
