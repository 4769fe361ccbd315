"""Tithe's side of caches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

import tithe
from benchmarks.peers.serve import serve
from benchmarks.peers.workers.shared import Method, Side

REQUESTS = (
    ("ask", "\n\nRepeat the previous context exactly."),
    ("again", "\n\nRepeat the part of the previous context exactly, starting with"),
    ("close", "\n"),
)


class Ours(Side):
    """``method`` is a slug with its parameters."""

    def attached(self, model: Any, method: Method) -> AbstractContextManager[Any]:
        """Attach the method; KVzip is given the words by which kvpress asks for the context again."""
        if method is None:
            return nullcontext()
        given = dict(method)
        if given["method"] == "kvzip":
            given |= {name: self.tokenizer.encode(text, add_special_tokens=False) for name, text in REQUESTS}
        return tithe.on(model, given.pop("method"), **given)

    def read(self, model: Any, ids: Tensor, cache: Any, method: Method, run: Any) -> Tensor:
        """Compression comes where the prefill ends."""
        with nullcontext() if run is None else run.prefill():
            return super().read(model, ids, cache, method, run)

    def size(self, cache: Any, run: Any) -> int:
        """What is allocated, slack included."""
        return super().size(cache, run) if run is None else int(run.report().kv_allocated)


if __name__ == "__main__":
    serve(Ours().jobs())
