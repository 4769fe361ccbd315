"""The parts of a control step: what actions may change of it, and the attention of its two towers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.seams.evidence import LayerEvidence
from tithe.seams.layers import take
from tithe.seams.stores import View
from tithe.types import Selection

if TYPE_CHECKING:
    from tithe.seams.policy import ControlStep, PolicySeam


class FeatureState:
    """The image tokens of all cameras, ``[B, n, d]``, before they enter the prompt."""

    def __init__(self, features: Tensor, before: Tensor | None) -> None:
        self.features, self._before = features, before

    def reuse(self, selection: Selection) -> None:
        """Let the tokens that are not kept be those of the control step before."""
        if self._before is not None:
            self.features = torch.where(selection.keep[:, 0, :, None], self.features, self._before)


class PromptState:
    """The prompt before a text layer: ``hidden [B, k, d]`` is what flows into it."""

    def __init__(self, now: ControlStep, hidden: Tensor) -> None:
        self._now, self.hidden = now, hidden

    @property
    def features(self) -> Tensor:
        """What entered the first layer of the tokens that flow, ``[B, k, d]``."""
        now = self._now
        return now.embeds if now.index is None else take(now.embeds, now.index)

    def drop(self, selection: Selection) -> None:
        """Let only the kept tokens flow on; pads are dropped with the others."""
        now = self._now
        live = now.columns[1]
        if bool((selection.keep[:, 0] | ~live).all()):
            return
        place = Selection(selection.keep & live[:, None], selection.cols).index()[:, 0]
        self.hidden = take(self.hidden, place)
        now.index = place if now.index is None else torch.where(place >= 0, now.index.gather(1, place.clamp(min=0)), -1)


def narrowed(kwargs: dict[str, Any], columns: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return a layer's arguments for the ``columns`` that flow: positions, and the mask on both of its sides."""
    cols, alive = columns
    index = torch.where(alive, cols.long(), 0)
    out = dict(kwargs)
    out["position_embeddings"] = tuple(take(part, index) for part in out["position_embeddings"])
    if out.get("position_ids") is not None:
        out["position_ids"] = take(out["position_ids"], index)
    mask = out.get("attention_mask")
    if mask is not None:
        rows = mask.expand(len(index), -1, -1, -1)
        mask = rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    out["attention_mask"] = columns_of(mask, index, alive, 0)
    return out


def columns_of(mask: Tensor | None, index: Tensor, alive: Tensor, own: int) -> Tensor | None:
    """Return the columns ``index [B, k]`` of ``mask [B, 1, T, n + own]`` and its last ``own``; the dead are hidden."""
    if mask is None:
        if bool(alive.all()):
            return None
        shown = torch.cat([alive, alive.new_ones(len(alive), own)], 1)
        return shown[:, None, None]
    rows = mask.expand(len(index), -1, -1, -1)
    picked = rows.gather(3, index[:, None, None].expand(-1, rows.shape[1], rows.shape[2], -1))
    hidden = ~alive[:, None, None]
    picked = picked & ~hidden if mask.dtype == torch.bool else picked.masked_fill(hidden, torch.finfo(mask.dtype).min)
    return torch.cat([picked, rows[..., rows.shape[3] - own :]], 3) if own else picked


def paid(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return ``[B, T, n]``: the attention of each query ``[B, Hq, T, d]`` to keys ``[B, Hkv, n, d]``, mean of heads."""
    rows, heads, steps, dim = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, dim)
    logits = (grouped @ key.mT).float().view(rows, heads, steps, -1) * scaling
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1).mean(1)


class PromptTap:
    """Attention of the text tower."""

    def __init__(self, seam: PolicySeam) -> None:
        self.seam = seam

    def attend(
        self,
        index: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, and show what some step reads."""
        seam, now = self.seam, self.seam.step
        rows, _, steps, _ = query.shape
        full = now.valid.shape[1]
        seam.run.counter.linear(index, rows, steps, full)
        seam.run.counter.attention(query, key.shape[2], full, full)
        cols, alive = now.columns
        if seam.run.plan.evidence(index):
            view = View(key, value, cols[:, None], alive[:, None])
            now.shown[index] = LayerEvidence(view, module.scaling, queries=query, live=alive, causal=False)  # type: ignore[arg-type]
        if ("text", index) in seam.windows:
            words = alive & ~now.image.gather(1, cols.clamp(max=full - 1).long())
            weight = words / words.sum(-1, keepdim=True).clamp(min=1)
            mean = (paid(query, key, mask, module.scaling) * weight[..., None]).sum(1)  # type: ignore[arg-type]
            now.seen["text", index] = spread(mean, cols, alive, full)
        return seam.own(0).run_own(module, query, key, value, mask, **kwargs)


class ExpertTap:
    """Attention of the expert: to what each text layer holds of the prompt, and to its own tokens."""

    def __init__(self, seam: PolicySeam) -> None:
        self.seam = seam

    def attend(
        self,
        index: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend under the mask of the columns that are held, and gather what later steps ask for."""
        seam, now = self.seam, self.seam.step
        rows, _, steps, _ = query.shape
        full, held = now.valid.shape[1], now.held.get(index)
        seam.counter.linear(index, rows, steps, steps)
        seam.counter.attention(query, key.shape[2], steps, full + steps)
        if held is not None:
            mask = columns_of(mask, held.clamp(min=0), held >= 0, steps)
        if ("actions", index) in seam.windows:
            acts = query[:, :, seam.host.lead :]
            shown = mask if mask is None or mask.shape[2] == 1 else mask[:, :, seam.host.lead :]
            mean = paid(acts, key, shown, module.scaling).mean(1)[:, : key.shape[2] - steps]  # type: ignore[arg-type]
            found = mean if held is None else spread(mean, held, held >= 0, full)
            done = now.counts.get(("actions", index), 0)
            before = now.seen["actions", index] if done else found
            now.seen["actions", index] = (before * done + found) / (done + 1)
            now.counts["actions", index] = done + 1
        return seam.own(1).run_own(module, query, key, value, mask, **kwargs)


def spread(mean: Tensor, cols: Tensor, alive: Tensor, width: int) -> Tensor:
    """Return ``[B, width]``: ``mean [B, k]`` at its columns, 0 at those that are not there."""
    out = mean.new_zeros(len(mean), width + 1)
    place = torch.where(alive, cols.long(), width)
    return out.scatter_(1, place, mean)[:, :width]
