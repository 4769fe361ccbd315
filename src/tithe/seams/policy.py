"""A vision-language-action model under the seams: its pictures, its prompt, and the expert that reads their keys."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import Refused
from tithe.hosts.policy import PolicyHost
from tithe.seams.attention import Tapped
from tithe.seams.control import ExpertTap, FeatureState, PromptState, PromptTap, narrowed
from tithe.seams.episode import Asks, Episode, Past, PolicyEvidence
from tithe.seams.evidence import LayerEvidence
from tithe.seams.sharing import DepthSeam, SharingSeam
from tithe.trace import Counter, Stopwatch
from tithe.types import DEAD, IMAGE, PAD, TEXT, Tokens, layer_at

if TYPE_CHECKING:
    from tithe.flow import Run


@dataclass
class ControlStep:
    """One request for actions. ``index [B, k]`` are the columns that flow, -1 for none, None while all do.

    ``held`` says the same for each text layer's keys; ``seen`` is the attention gathered for later steps.
    """

    image: Tensor
    pixels: Tensor
    cameras: Tensor
    embeds: Tensor = field(default_factory=lambda: torch.empty(0))
    valid: Tensor = field(default_factory=lambda: torch.empty(0))
    index: Tensor | None = None
    held: dict[int, Tensor | None] = field(default_factory=dict)
    shown: dict[int, LayerEvidence] = field(default_factory=dict)
    seen: dict[tuple[Asks, int], Tensor] = field(default_factory=dict)
    counts: dict[tuple[Asks, int], int] = field(default_factory=dict)
    rounds: int = 0

    @property
    def kind(self) -> Tensor:
        """The kind of every column, ``[B, T]``."""
        return torch.where(self.valid, torch.where(self.image, IMAGE, TEXT), PAD)

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """The columns that flow and which of them are live, ``[B, k]``."""
        if self.index is None:
            every = torch.arange(self.valid.shape[1], device=self.valid.device, dtype=torch.int32)
            return every.expand(self.valid.shape), self.valid
        alive = (self.index >= 0) & self.valid.gather(1, self.index.clamp(min=0))
        return torch.where(self.index >= 0, self.index, DEAD).int(), alive


class PolicySeam:
    """Fires steps at ``Site("encoder", tower="image")`` and ``Site("layer")`` of every control step."""

    def __init__(self, run: Run) -> None:
        host = run.host
        assert isinstance(host, PolicyHost) and host.expert is not None and host.text is not None
        self.run, self.host, self.episode = run, host, Episode()
        self.now: ControlStep | None = None
        self.windows = {
            (need.how.asks, layer_at(need.layer, len(host.layers))): need.how.window
            for method in run.methods
            for step in method.steps
            for need in step.needs
            if isinstance(need.how, Past) and need.layer is not None
        }
        self.counter = Counter(run.trace, list(host.expert_layers), host.expert.config)
        self._watch = Stopwatch(run.trace.clocks["prefill"])
        self._round = Stopwatch(run.trace.clocks["decode"])
        self._tapped: list[Tapped] = []
        self._handles: list[Any] = []
        self._named: list[tuple[Any, str]] = []
        self._more: list[DepthSeam | SharingSeam] = []
        try:
            self._tapped.append(Tapped(host.text, list(host.layers), PromptTap(self)))
            self._tapped.append(Tapped(host.expert, list(host.expert_layers), ExpertTap(self)))
            self._hook()
            if run.plan.at("depth"):
                self._more.append(DepthSeam(self))
        except Exception:
            self.restore()
            raise

    def _hook(self) -> None:
        host = self.host
        self._handles += [
            host.reader.register_forward_pre_hook(self._before, with_kwargs=True),
            host.reader.register_forward_hook(lambda *_: self._watch.stop()),
            host.expert.register_forward_pre_hook(self._before_round),  # type: ignore[union-attr]
            host.expert.register_forward_hook(self._after_round),  # type: ignore[union-attr]
        ]
        for index, layer in enumerate(host.layers):
            self._handles.append(layer.register_forward_pre_hook(self._at_layer(index), with_kwargs=True))
        self._wrap(host.prefix, "embed_prefix", self._embed)
        if self.run.plan.encodes:
            self._wrap(host.reader, "get_image_features", self._look)

    def _wrap(self, owner: Any, name: str, around: Any) -> None:
        own = getattr(owner, name)
        setattr(owner, name, functools.wraps(own)(functools.partial(around, own)))
        self._named.append((owner, name))

    def restore(self) -> None:
        """Take everything off."""
        for seam in reversed(self._more):
            seam.restore()
        for owner, name in self._named:
            delattr(owner, name)
        for handle in self._handles:
            handle.remove()
        for tapped in reversed(self._tapped):
            tapped.restore()
        self._more, self._named, self._handles, self._tapped = [], [], [], []

    def reset(self) -> None:
        """Begin a new episode."""
        self.episode, self.now = Episode(), None

    def share(self, interval: int) -> None:
        """Run the parts of the expert's layers in one of ``interval`` rounds."""
        self._more.append(SharingSeam(self, interval))

    def spare(self, index: int, hidden: Tensor, expert: bool) -> None:
        """Count a layer that does not run on ``hidden [B, T, d]``."""
        counter = self.counter if expert else self.run.counter
        config: Any = self.host.expert.config if expert else self.host.config  # type: ignore[union-attr]
        rows, steps = hidden.shape[0], hidden.shape[1] if expert else self.step.valid.shape[1]
        counter.linear(index, rows, 0, steps)
        heads = torch.empty(rows, config.num_attention_heads, 1, config.head_dim, device="meta")
        counter.pairs(heads, 0, steps, self.step.valid.shape[1] + (steps if expert else 0))

    def own(self, tower: int) -> Tapped:
        """The text tower (0) or the expert (1), with its own attention."""
        return self._tapped[tower]

    @property
    def step(self) -> ControlStep:
        """The control step that runs."""
        assert self.now is not None
        return self.now

    # -- in order of a control step ---------------------------------------------------------------------------------

    def _embed(self, own: Any, input_ids: Tensor, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.now is not None:
            self.episode.close(self.now.seen, self.windows)
        cameras = args[0] if args else kwargs["pixel_attention_mask"]
        image = input_ids.eq(self.host.image_token)  # type: ignore[arg-type]
        self.now = ControlStep(image, pixel_values, cameras.bool())
        self.now.embeds = own(input_ids, pixel_values, *args, **kwargs)
        return self.now.embeds

    def _look(self, own: Any, *args: Any, **kwargs: Any) -> Any:
        output, now = own(*args, **kwargs), self.step
        rows, cameras = now.cameras.shape
        features = output.pooler_output.reshape(rows, -1, output.pooler_output.shape[-1])
        live = now.cameras.repeat_interleave(features.shape[1] // cameras, 1)
        if not torch.equal(live.sum(-1), now.image.sum(-1)):
            raise Refused(
                f"{now.image.sum(-1).tolist()} image tokens in the prompts and {live.sum(-1).tolist()} of their "
                "cameras: a method that reads pictures needs as many of each in every row."
            )
        place = torch.full(live.shape, -1, device=live.device)
        place[live] = now.image.nonzero()[:, 1]
        cols = torch.arange(live.shape[1], dtype=torch.int32, device=live.device).expand(rows, 1, -1)
        tokens = Tokens(cols, live[:, None], live.sum(-1), torch.full_like(cols, IMAGE), (self.host.grid,) * cameras)
        state = FeatureState(features, self.episode.features)
        for bound in self.run.plan.at("encoder"):
            evidence = PolicyEvidence(self.episode, {}, len(self.host.layers), features, now.pixels, place)
            evidence.same_prompt(now.image)
            self.run.fire(bound, evidence, tokens, state, None)
        self.episode.pixels, self.episode.features = now.pixels.clone(), state.features
        output.pooler_output = state.features.view_as(output.pooler_output)
        return output

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.now is None or kwargs.get("inputs_embeds") is not self.now.embeds:
            raise Refused("inputs_embeds hide which tokens are image tokens: give input_ids and pixel_values.")
        now, mask = self.now, kwargs.get("attention_mask")
        now.valid = torch.ones_like(now.image) if mask is None else mask.bool()
        self.run.phase = "prefill"
        self._watch.start()

    def _at_layer(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            now, given = self.step, dict(kwargs)
            hidden = args[0] if args else given.pop("hidden_states")
            state = PromptState(now, hidden)
            for bound in self.run.plan.at("layer", "prefill", index):
                cols, valid = now.columns
                kind = now.kind.gather(1, cols.clamp(max=now.kind.shape[1] - 1).long())
                tokens = Tokens(cols[:, None], valid[:, None], now.valid.sum(-1), kind[:, None])
                shown = {("text", n): layer for n, layer in now.shown.items()}
                evidence = PolicyEvidence(self.episode, shown, len(self.host.layers), state.features)  # type: ignore[arg-type]
                evidence.same_prompt(now.image)
                self.run.fire(bound, evidence, tokens, state, index)
            now.held[index] = now.index
            if now.index is None:
                return None
            return (state.hidden, *args[1:]), narrowed(given, now.columns)

        return before

    def _before_round(self, *_: Any) -> None:
        self.run.phase = "decode"
        self._round.start()

    def _after_round(self, *_: Any) -> None:
        self._round.stop()
        self.step.rounds += 1
