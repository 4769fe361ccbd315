"""The side of transformers' own quantised cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import QuantizedCache

from benchmarks.peers.cases import Case
from benchmarks.peers.serve import serve
from benchmarks.peers.workers.shared import Method, Side, allocated

AXIS = {"quanto": 0, "hqq": 1}  # as transformers' documentation advises for each


class Stock(Side):
    """``method`` is a backend with bits, group and residual."""

    def cache(self, model: Any, method: Method) -> Any:
        """Return transformers' quantised cache."""
        if method is None:
            return super().cache(model, method)
        axis = AXIS[method["backend"]]
        return QuantizedCache(
            backend=method["backend"],
            config=model.config,
            nbits=method["bits"],
            axis_key=axis,
            axis_value=axis,
            q_group_size=method["group"],
            residual_length=method["residual"],
        )

    def after(self, case: Case, method: Method) -> list[str]:
        """A prompt that the backend cannot pack is one that it does not answer: hqq packs full bytes only."""
        return self._unless_it_raises(super().after, case, method)

    def inside(self, case: Case, method: Method) -> list[str]:
        """The same, question by question."""
        write = super().inside
        alone = [replace(case, questions=(one,)) for one in case.questions]
        return [said for one in alone for said in self._unless_it_raises(write, one, method)]

    @staticmethod
    def _unless_it_raises(write: Callable[[Case, Method], list[str]], case: Case, method: Method) -> list[str]:
        try:
            return write(case, method)
        except RuntimeError as error:
            print(f"{len(case.ids)} tokens: {error}", flush=True)
            return [""] * len(case.questions)

    def size(self, cache: Any, run: Any) -> int:
        """Count codes, scales and zeros, and the newest tokens in full precision."""
        if not isinstance(cache, QuantizedCache):
            return super().size(cache, run)
        names = ("keys", "values", "_quantized_keys", "_quantized_values")
        return allocated(tensor for layer in cache.layers for name in names for tensor in inner(getattr(layer, name)))


def inner(held: Any) -> Iterator[Tensor]:
    """Yield the plain tensors of what a backend calls quantised: a tensor subclass, or a tensor and a dictionary."""
    if isinstance(held, (tuple, dict)):
        for part in held.values() if isinstance(held, dict) else held:
            yield from inner(part)
    elif isinstance(held, Tensor) and type(held) is not Tensor and hasattr(held, "__tensor_flatten__"):
        for name in held.__tensor_flatten__()[0]:
            yield from inner(getattr(held, name))
    elif isinstance(held, Tensor):
        yield held.detach() if isinstance(held, torch.nn.Parameter) else held


if __name__ == "__main__":
    serve(Stock().jobs())
