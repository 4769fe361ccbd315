"""Answer tokens changed by what was dropped before them: a context kept at each cut, and a small change of attention.

Where image tokens leave the stream, a vector of what they were and where is kept beside the cache (beside the stream
where there is none). In the layers that are repaired, what attention gives for the last token of a prompt and for each
decoded one, those that an answer is read from, is moved by a bottleneck whose features the vector scales and shifts
(FiLM). Nothing is changed in rows that lost no image token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tithe.scores.pruners import Weights, mean_of
from tithe.seams.layers import StreamState
from tithe.seams.transitions import modules
from tithe.types import IMAGE, Selection

if TYPE_CHECKING:
    from tithe.flow import Run

IMAGES = "repair images"


def name_of(layer: int) -> str:
    """What the context of a cut before ``layer`` is called beside the cache."""
    return f"repair {layer}"


@dataclass(frozen=True)
class Context:
    """What is remembered of a cut: which image tokens are left, and the mean of those that went.

    ``weights`` by name: ``places [N, p]``, one for each image token of the prompt (interpolated for another number of
    them), ``look [p]``, ``mask.weight [c, p]``, ``mask.bias``, ``pruned.weight [c, d]``, ``pruned.bias``.
    """

    weights: Weights

    def __call__(self, kept: Tensor, states: Tensor, gone: Tensor) -> Tensor:
        """Return ``[B, c]``.

        Args:
            kept: ``[B, N]``, 1.0 for each image token of the prompt that still flows, 0.0 for one that was dropped.
            states: ``[B, n, d]``, tokens in front of the cut; gone: ``[B, n]``, 1.0 for those that go now.
        """
        w = self.weights
        places = w["places"]
        if len(places) != kept.shape[1]:
            places = F.interpolate(places.T[None], size=kept.shape[1], mode="linear", align_corners=False)[0].T
        shown = kept[..., None] * places
        pooled = (shown @ w["look"] * places.shape[1] ** -0.5).softmax(-1)[:, None] @ shown
        left = F.linear(pooled[:, 0], w["mask.weight"], w["mask.bias"])
        return left + F.linear(mean_of(states, gone), w["pruned.weight"], w["pruned.bias"])


@dataclass(frozen=True)
class Film:
    """A bottleneck whose features are scaled and shifted by a context and by what asks.

    ``weights`` by name: ``down.weight [c, d]``, ``down.bias``, ``query.weight [c, d]``, ``query.bias``,
    ``gamma.weight [c, c]``, ``gamma.bias``, ``beta.weight [c, c]``, ``beta.bias``, ``up.weight [d, c]``, ``up.bias``,
    ``alpha``.
    """

    weights: Weights

    def __call__(self, given: Tensor, asking: Tensor, context: Tensor) -> Tensor:
        """Return the change ``[..., d]`` of what attention gave, ``given [..., d]``, for tokens ``asking [..., d]``."""
        w = self.weights
        told = context + F.linear(asking, w["query.weight"], w["query.bias"])
        gamma, beta = (F.linear(told, w[f"{name}.weight"], w[f"{name}.bias"]) for name in ("gamma", "beta"))
        features = (1 + gamma) * F.gelu(F.linear(given, w["down.weight"], w["down.bias"])) + beta
        return w["alpha"] * F.linear(features, w["up.weight"], w["up.bias"])


def note(state: StreamState, selection: Selection, context: Context) -> None:
    """Keep the context of a cut that is about to be made; rows without image tokens keep the one they have."""
    stream = state.stream
    if stream.kind is None:
        return
    image = stream.valid & (stream.kind == IMAGE)
    if IMAGES not in stream.carried:
        table = torch.zeros(len(image), stream.end + 1, device=image.device)
        stream.carried[IMAGES] = table.scatter(1, torch.where(image, stream.cols, stream.end).long(), 1.0)[
            :, : stream.end
        ]
    given = stream.carried[IMAGES] > 0
    keep = selection.keep[:, 0]
    held = torch.zeros(len(image), stream.end + 1, device=image.device)
    held = held.scatter(1, torch.where(keep & image, stream.cols, stream.end).long(), 1.0)
    width = context.weights["mask.bias"].shape[0]
    memory = _memory(state._run) if state._run.layers_of_cache() else stream.carried
    made = memory.get(name_of(state.layer))
    made = torch.zeros(len(image), width + 1, device=image.device) if made is None else made.clone()
    gone = (image & ~keep).float()
    for row in given.any(-1).nonzero()[:, 0].tolist():
        kept = held[row, : stream.end][given[row]][None]
        one = slice(row, row + 1)
        made[row, :width] = context(kept, state.hidden[one].float(), gone[one])[0]
        made[row, width] = float(bool((kept == 0).any()))
    memory[name_of(state.layer)] = made


def _memory(run: Run) -> dict[str, Tensor]:
    return run.layers_of_cache()[0].memory


class RepairSeam:
    """Hooks on the attention of some text layers, each of which reads the context of the last cut before it."""

    def __init__(self, run: Run, adapters: dict[int, Film]) -> None:
        self.run = run
        self._handles = [
            modules(run.host.layers[layer])["attention"].register_forward_hook(
                self._hook(film, [name_of(cut) for cut in range(layer, -1, -1)]), with_kwargs=True
            )
            for layer, film in adapters.items()
        ]

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, film: Film, names: list[str]) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            stream = self.run.stream
            if stream is None or self.run.probing or self.run.refilling:
                return None
            memory = _memory(self.run) if self.run.layers_of_cache() else stream.carried
            kept = next((memory[name] for name in names if name in memory), None)
            if kept is None or not bool(kept[:, -1].any()):
                return None
            given = output[0] if isinstance(output, tuple) else output
            entered = args[0] if args else kwargs["hidden_states"]
            last = given.shape[1] - 1 - stream.valid.flip(-1).int().argmax(-1)
            row = torch.arange(len(given), device=given.device)
            change = film(given[row, last].float(), entered[row, last].float(), kept[:, :-1]) * kept[:, -1:]
            self.run.trace.flops += _flops(film, len(given))
            made = given.clone()
            made[row, last] += change.to(given.dtype)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        return after


def _flops(film: Film, tokens: int) -> int:
    return 2 * tokens * sum(weight.numel() for weight in film.weights.values() if weight.dim() == 2)
