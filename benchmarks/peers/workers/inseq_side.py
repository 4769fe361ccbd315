"""inseq's side of attribution."""

from __future__ import annotations

from typing import Any

import inseq
from torch import Tensor

from benchmarks.peers.serve import serve
from benchmarks.peers.workers.attributing import Attributing

STEPS: dict[str, dict[str, Any]] = {"integrated_gradients": {"n_steps": 20}}


class Inseq(Attributing):
    """Its own call, with the prompt and its first answer token as text, which tokenise back to the same ids."""

    options = {"attn_implementation": "eager"}

    def prepare(self) -> None:
        """Wrap the model."""
        self.wrapped = inseq.load_model(self.model, self.method, tokenizer=self.tokenizer)

    def scores(self, ids: list[int], target: int) -> Tensor:
        """Attribute."""
        prompt, whole = (self.tokenizer.decode(part) for part in (ids, [*ids, target]))
        out = self.wrapped.attribute(prompt, whole, show_progress=False, **STEPS.get(self.method, {}))
        (found,) = out.sequence_attributions
        if [token.id for token in found.target] != [*ids, target]:
            raise ValueError("inseq reads other tokens")
        every = found.target_attributions[: len(ids), 0]
        return every.flatten(1).mean(-1) if self.method == "attention" else every.reshape(len(ids), -1).norm(dim=-1)


if __name__ == "__main__":
    serve(Inseq().jobs())
