"""kvpress's side: its presses, and its pipeline where a question comes after the context."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from kvpress import AdaKVPress, ExpectedAttentionPress, KVPressTextGenerationPipeline, KVzipPress, SnapKVPress
from torch import Tensor

from benchmarks.peers.cases import Case
from benchmarks.peers.serve import serve
from benchmarks.peers.workers.shared import Method, Side, row


class Presses(Side):
    """``method`` is a press by our name for its method, with the same parameters."""

    def read(self, model: Any, ids: Tensor, cache: Any, method: Method, run: Any) -> Tensor:
        """Presses work inside their own context; KVzip's does so when it is left."""
        with nullcontext() if method is None else press(method)(model):
            return super().read(model, ids, cache, method, run)

    def after(self, case: Case, method: Method) -> list[str]:
        """The pipeline compresses once and answers all; answers of different lengths are asked for one by one."""
        pipeline = KVPressTextGenerationPipeline(model=self.model, tokenizer=self.tokenizer)
        questions = case.questions
        groups = [questions] if len({one.room for one in questions}) == 1 else [(one,) for one in questions]
        said: list[str] = []
        for group in groups:
            ids = {"context_ids": row(case.ids), "questions_ids": [row(one.ids) for one in group]}
            compress = None if method is None else press(method)
            said += pipeline._forward(ids, max_new_tokens=group[0].room, press=compress)
        return said


def press(method: dict[str, Any]) -> Any:
    """Return the press of a method."""
    slug, ratio = method["method"], 1 - method["keep"]
    if slug == "expected-attention":
        return ExpectedAttentionPress(ratio)
    if slug == "kvzip":
        return KVzipPress(ratio)
    snapkv = SnapKVPress(ratio, window_size=method["window"], kernel_size=method["kernel"])
    return AdaKVPress(snapkv) if slug == "adakv" else snapkv


if __name__ == "__main__":
    serve(Presses().jobs())
