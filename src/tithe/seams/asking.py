"""The prompt as an encoder step may read it: its text as embeddings, and the model itself to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tithe.seams.features import placeholders
from tithe.seams.stream import Stream

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.plan import Bound


class Prompted:
    """The text around the pictures of one row: ``cols [t]`` its columns in this forward, in order.

    ``places [n]`` are the columns of the image tokens at hand.
    """

    def __init__(self, run: Run, bound: Bound, ids: Tensor, row: int, places: Tensor) -> None:
        assert run.stream is not None
        self._run, self._bound, self._ids = run, bound, ids[row]
        self.places = places
        visual = placeholders(run.host, self._ids)
        self.cols = (run.stream.valid[row] & ~visual).nonzero()[:, 0]
        self._last = int(visual.nonzero().max()) if bool(visual.any()) else -1

    @property
    def after(self) -> Tensor:
        """``[t]``: whether a token stands behind the last picture."""
        return self.cols > self._last

    @property
    def ids(self) -> Tensor:
        """``[t]``: the token ids."""
        return self._ids[self.cols]

    @cached_property
    def embeds(self) -> Tensor:
        """``[1, t, d]``: the embeddings that enter the language model."""
        return self.embed(self.ids)

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Return the embeddings ``[1, k, d]`` of token ids."""
        table = self._run.host.model.get_input_embeddings()
        device = self._ids.device
        found = ids.to(device) if isinstance(ids, Tensor) else torch.tensor(list(ids), dtype=torch.long, device=device)
        embeds: Tensor = table(found[None])
        return embeds

    def ask(self, before: Sequence[int] | Tensor, features: Tensor, behind: Sequence[int] | Tensor) -> Tensor:
        """Return the logits ``[1, V]`` of what the model says behind ids, ``features [1, m, d]`` and ids.

        The model's own language tower reads them with positions counted from 0 and no picture known to it as such; no
        method fires.
        """
        run = self._run
        assert run.host.text is not None
        parts = [self.embed(before), features.to(run.host.model.dtype), self.embed(behind)]
        embeds = torch.cat(parts, 1)
        stream, width = run.stream, embeds.shape[1]
        cols = torch.arange(width, dtype=torch.int32, device=embeds.device)[None]
        run.stream, run.probing = Stream(cols, torch.ones_like(cols, dtype=torch.bool), 0, width), self._bound
        try:
            hidden = run.host.text(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1]
        finally:
            run.stream, run.probing = stream, None
        head = run.host.model.get_output_embeddings()
        run.counter.head(head.weight.numel(), 1, 1, 0)
        logits: Tensor = head(hidden)
        return logits
