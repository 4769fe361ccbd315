"""What the tokens were when they entered a text layer, and what its two modules made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tithe.errors import Refused

if TYPE_CHECKING:
    from tithe.flow import Run


@dataclass(frozen=True)
class Change:
    """A module between what it was given and what it gave, the residual left out: norms and cosine, ``[B, T]``."""

    before: Tensor
    after: Tensor
    cosine: Tensor


@dataclass
class Passage:
    """The tokens that flowed through a layer in this forward: ``cols, valid, kind [B, T]``.

    ``entering [B, T, d]`` are their hidden states in front of it, ``changes`` those of ``attention`` and ``mlp``; each
    only where a step asks for it (``Need("hidden", layer)``, ``Need("transitions", layer)``).
    """

    cols: Tensor
    valid: Tensor
    kind: Tensor | None
    entering: Tensor | None = None
    changes: dict[str, Change] = field(default_factory=dict)


def change(before: Tensor, after: Tensor) -> Change:
    """Return the change from ``before`` to ``after``, ``[B, T, d]``."""
    before, after = before.float(), after.float()
    return Change(before.norm(dim=-1), after.norm(dim=-1), cosine_similarity(before, after, dim=-1))


def watch(run: Run, index: int, layer: nn.Module) -> list[Any]:
    """Hook the attention and the MLP of a layer; return the handles."""

    def noted(name: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            passage = run.stream.passages.get(index) if run.stream is not None and not run.probing else None
            if passage is not None:
                given = args[0] if args else kwargs["hidden_states"]
                passage.changes[name] = change(given, output[0] if isinstance(output, tuple) else output)

        return after

    return [part.register_forward_hook(noted(name), with_kwargs=True) for name, part in modules(layer).items()]


def modules(layer: nn.Module) -> dict[str, nn.Module]:
    """Return the ``attention`` and the ``mlp`` of a decoder layer, by what their classes are called."""
    parts = list(layer.children())
    attention = [part for part in parts if "Attention" in type(part).__name__]
    rest = ("MLP", "Mlp", "Moe", "MoE", "FeedForward")
    mlp = [part for part in parts if any(word in type(part).__name__ for word in rest)]
    if len(attention) != 1 or len(mlp) != 1:
        raise Refused(f"{type(layer).__name__} has not one attention and one MLP, whose transitions a method reads.")
    return {"attention": attention[0], "mlp": mlp[0]}


def passage_of(run: Run, index: int, hidden: Tensor) -> Passage | None:
    """Return the passage of ``hidden [B, T, d]`` through a layer, None where no step asks for it."""
    stream, asks = run.stream, run.plan.asks
    if stream is None or run.phase != "prefill" or not (asks("hidden", index) or asks("transitions", index)):
        return None
    return Passage(stream.cols, stream.valid, stream.kind, hidden if asks("hidden", index) else None)
