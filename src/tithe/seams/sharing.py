"""Layers that are left out, and the expert's parts whose output is used again in its next rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tithe.seams.episode import PolicyEvidence
from tithe.types import TEXT, Selection, Tokens

if TYPE_CHECKING:
    from tithe.seams.policy import PolicySeam


class DepthState:
    """The layers after the first prompt of an episode."""

    def __init__(self, seam: PolicySeam) -> None:
        self._seam = seam

    def skip(self, selection: Selection) -> None:
        """Leave the layers that are not kept out for the rest of the episode, those of the expert beside them too.

        A layer that some step reads runs all the same.
        """
        skipped = ~selection.keep[:, 0]
        reads = [self._seam.run.plan.evidence(layer) for layer in range(skipped.shape[1])]
        self._seam.episode.skipped = skipped & ~torch.tensor(reads, device=skipped.device)


class DepthSeam:
    """Measures how much each text layer changes its tokens, and passes by those that were chosen.

    A layer is passed by where every row of the batch does; otherwise it runs, and rows that skip it keep what they had.
    """

    def __init__(self, seam: PolicySeam) -> None:
        self.seam = seam
        self._named: list[Any] = []
        self._found: dict[int, Tensor] = {}
        host = seam.host
        for layers, expert in ((host.layers, False), (host.expert_layers, True)):
            for index, layer in enumerate(layers):
                self._named.append(layer)
                layer.forward = self._around(index, layer.forward, expert)
        self._handle = host.reader.register_forward_hook(self._choose)

    def restore(self) -> None:
        """Give every layer its own forward back."""
        for layer in self._named:
            del layer.forward
        self._handle.remove()

    def _around(self, index: int, own: Any, expert: bool) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            episode, hidden = self.seam.episode, args[0] if args else kwargs["hidden_states"]
            if episode.skipped is None or not episode.step:
                out = own(*args, **kwargs)
                if not expert:
                    self._measure(index, hidden, out)
                return out
            skips = episode.skipped[:, index]
            if bool(skips.all()):
                self.seam.spare(index, hidden, expert)
                return hidden
            out = own(*args, **kwargs)
            return torch.where(skips[:, None, None], hidden, out)

        return forward

    def _measure(self, index: int, entering: Tensor, leaving: Tensor) -> None:
        if self.seam.episode.change is None:
            live = self.seam.step.columns[1]
            alike = cosine_similarity(entering.float(), leaving.float(), dim=-1).masked_fill(~live, 0.0)
            self._found[index] = 1 - alike.sum(-1) / live.sum(-1)

    def _choose(self, *_: Any) -> None:
        seam, found = self.seam, self._found
        if seam.episode.change is not None or not found:
            return
        seam.episode.change, self._found = torch.stack([found[index] for index in sorted(found)], -1), {}
        rows, total = seam.episode.change.shape
        cols = torch.arange(total, dtype=torch.int32, device=seam.episode.change.device).expand(rows, 1, -1)
        seen = torch.full((rows,), total, device=cols.device)
        tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), seen, torch.full_like(cols, TEXT))
        for bound in seam.run.plan.at("depth"):
            evidence = PolicyEvidence(seam.episode, {}, total, seam.episode.change[..., None])
            seam.run.fire(bound, evidence, tokens, DepthState(seam), None)


class SharingSeam:
    """Attention and MLP of each layer of the expert run in one of ``interval`` rounds and give the same in the rest."""

    def __init__(self, seam: PolicySeam, interval: int) -> None:
        self.seam, self.interval = seam, interval
        self._kept: dict[Any, Any] = {}
        self._parts: list[Any] = []
        for index, layer in enumerate(seam.host.expert_layers):
            for name in seam.host.expert_parts:
                part: Any = layer.get_submodule(name)
                part.forward = self._around(index, part, part.forward, name == seam.host.expert_parts[0])
                self._parts.append(part)

    def restore(self) -> None:
        """Give every part its own forward back."""
        for part in self._parts:
            del part.forward
        self._kept = {}

    def _around(self, index: int, part: Any, own: Any, attends: bool) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            rounds = self.seam.step.rounds
            fresh = rounds % self.interval == 0
            if attends:
                self.seam.run.trace.tally({"action head": (int(fresh), 1)})
            if fresh:
                self._kept[part] = own(*args, **kwargs)
                return self._kept[part]
            if attends:
                hidden = args[0] if args else kwargs["hidden_states"]
                self.seam.spare(index, hidden, True)
                self._fill(part, hidden, kwargs["past_key_values"])
            return self._kept[part]

        return forward

    def _fill(self, part: Any, hidden: Tensor, cache: Any) -> None:
        """Let the cache grow as it would have: the model takes as many tokens off it after each round."""
        rows, steps = hidden.shape[:2]
        config = part.config
        blank = hidden.new_zeros(rows, config.num_key_value_heads, steps, part.head_dim)
        cache.update(blank, blank, part.layer_idx)
