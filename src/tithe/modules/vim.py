"""A small vision state-space model, laid out as Vision Mamba (Zhu et al. 2024, arXiv:2401.09417) is.

Layout: patches of a convolution, a CLS token put in the middle of them, learned positions; blocks of a norm and a mixer
with a residual around both; the head reads the CLS token. A mixer projects its tokens to ``x`` and a gate ``z``; two
scans, one along the raster and one against it, each with a causal depth-wise convolution, step sizes, transitions and
skips of its own, read ``x``; the sum of what they give, times ``SiLU(z)``, is projected back.

A scan holds a state h of ``state_size`` numbers for every channel: ``h_t = exp(D_t A) h_(t-1) + D_t B_t x_t``, and
gives ``y_t = C_t h_t + skip x_t``, where the step size D, B and C are the token's own.

Layers run on fewer tokens when told their ``places``, the places of those left among all. Each scan then goes on as if
a token of zeros stood wherever one is missing: the convolution reads zeros there, and the state moves by the step size
that the layer gives to zeros, ``softplus(bias)``, once for every place left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, pad, silu, softplus
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from tithe.errors import BadInput


class VimConfig(PreTrainedConfig):
    """Sizes of a ``VimForImageClassification``: ``inner_size`` channels in a scan, ``step_rank`` in its step sizes."""

    model_type = "tithe_vim"

    image_size: int = 48
    patch_size: int = 4
    num_channels: int = 3
    hidden_size: int = 96
    inner_size: int = 128
    state_size: int = 4
    conv_kernel: int = 4
    step_rank: int = 6
    num_hidden_layers: int = 6
    initializer_range: float = 0.06
    norm_eps: float = 1e-5


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, given: Tensor) -> Tensor:
        state = torch.empty_like(given)
        state[0] = given[0]
        for now in range(1, len(given)):
            torch.addcmul(given[now], decay[now], state[now - 1], out=state[now])
        ctx.save_for_backward(decay, state)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        decay, state = ctx.saved_tensors
        flow = grad.clone()
        for now in range(len(flow) - 1, 0, -1):
            flow[now - 1].addcmul_(decay[now], flow[now])
        return torch.cat([torch.zeros_like(state[:1]), flow[1:] * state[:-1]]), flow


def recurrence(decay: Tensor, given: Tensor) -> Tensor:
    """Return ``h_t = decay_t h_(t-1) + given_t`` from ``h_(-1) = 0``, along the first axis of ``[T, ...]``."""
    return _Recurrence.apply(decay, given)


def gaps(places: Tensor) -> Tensor:
    """Return how many places are missing before each of ``places [B, n]``, counted from the token before it."""
    return torch.diff(places, dim=-1, prepend=places[:, :1] - 1) - 1


class VimScan(nn.Module):
    """One scan of ``[B, n, inner_size]``, along the raster or ``backward``; gives ``y`` of the same shape."""

    def __init__(self, config: VimConfig, backward: bool) -> None:
        super().__init__()
        inner, self.backward_, self.rank, self.states = (
            config.inner_size,
            backward,
            config.step_rank,
            config.state_size,
        )
        self.conv = nn.Conv1d(inner, inner, config.conv_kernel, groups=inner)
        self.select = nn.Linear(inner, self.rank + 2 * self.states, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.rates = nn.Parameter(torch.empty(inner, self.states))
        self.skip = nn.Parameter(torch.empty(inner))

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Scan ``x``; ``places [B, n]`` say where among all tokens these stand, None where all are there."""
        if self.backward_:
            mirrored = None if places is None else -places.flip(1)
            return self._scan(x.flip(1), mirrored).flip(1)
        return self._scan(x, places)

    def _scan(self, x: Tensor, places: Tensor | None) -> Tensor:
        x = silu(self._convolved(x, places))
        raw, b, c = self.select(x).split([self.rank, self.states, self.states], -1)
        step = softplus(self.step(raw)).float()
        waited = step if places is None else step + gaps(places)[..., None] * softplus(self.step.bias).float()
        rate = -self.rates.float().exp()
        decay = (waited.transpose(0, 1)[..., None] * rate).exp()
        given = (step * x).transpose(0, 1)[..., None] * b.transpose(0, 1)[:, :, None].float()
        state = recurrence(decay, given)
        return ((state * c.transpose(0, 1)[:, :, None]).sum(-1).transpose(0, 1) + self.skip * x).to(x.dtype)

    def _convolved(self, x: Tensor, places: Tensor | None) -> Tensor:
        taps = self.conv.kernel_size[0]
        if places is None:
            return self.conv(pad(x.mT, (taps - 1, 0))).mT
        # Fewer tokens: tap k of a token is the one that stands k places before it, if it is still there.
        count = x.shape[1]
        padded = pad(x, (0, 0, 1, 0))
        assert self.conv.bias is not None
        out = self.conv.bias.expand_as(x)
        for back in range(taps):
            slot = torch.searchsorted(places.contiguous(), (places - back).contiguous())
            there = places.gather(1, slot.clamp(max=count - 1)) == places - back
            index = torch.where(there, slot + 1, 0)[..., None].expand_as(x)
            out = out + padded.gather(1, index) * self.conv.weight[:, 0, taps - 1 - back]
        return out


class VimMixer(nn.Module):
    """Two scans, a gate and projections: ``[B, n, hidden_size]`` to the same."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, 2 * config.inner_size, bias=False)
        self.scans = nn.ModuleList([VimScan(config, backward) for backward in (False, True)])
        self.out_proj = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, places: Tensor | None = None) -> Tensor:
        """Mix tokens along both scans; see ``VimScan`` for ``places``."""
        x, gate = self.in_proj(hidden).chunk(2, -1)
        return self.out_proj(sum(scan(x, places) for scan in self.scans) * silu(gate))


class VimLayer(nn.Module):
    """``hidden + mixer(norm(hidden))``."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = VimMixer(config)

    def forward(self, hidden: Tensor, places: Tensor | None = None) -> Tensor:
        """Return ``[B, n, hidden_size]``; see ``VimScan`` for ``places``."""
        return hidden + self.mixer(self.norm(hidden), places)


class VimForImageClassification(PreTrainedModel):
    """A Vim with a linear head. ``cls_place`` is where the CLS token stands among all ``1 + patches`` tokens."""

    config_class = VimConfig
    base_model_prefix = "vim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VimConfig) -> None:
        super().__init__(config)
        side = config.image_size // config.patch_size
        self.cls_place = side * side // 2
        self.num_labels = config.num_labels
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.positions = nn.Parameter(torch.empty(1, 1 + side * side, config.hidden_size))
        self.layers = nn.ModuleList([VimLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, VimScan):
            nn.init.uniform_(module.conv.weight, -0.5, 0.5)
            assert module.conv.bias is not None
            nn.init.zeros_(module.conv.bias)
            # Step sizes from 0.001 to 0.1 as in Mamba: some channels remember the whole image, others a few patches.
            wanted = torch.logspace(-3, -1, module.step.bias.numel(), device=module.step.bias.device)
            module.step.bias.copy_(torch.log(torch.expm1(wanted)))
            nn.init.normal_(module.step.weight, std=module.rank**-0.5 * 0.1)
            nn.init.normal_(module.select.weight, std=module.select.in_features**-0.5)
            module.rates.copy_(
                torch.arange(1, module.states + 1, device=module.rates.device).log().expand_as(module.rates)
            )
            nn.init.ones_(module.skip)
        if module is self:
            nn.init.normal_(self.cls_token, std=std)
            nn.init.normal_(self.positions, std=std)
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Return the tokens ``[B, 1 + patches, hidden_size]``, CLS among them.

        Raises:
            BadInput: if the images are not of ``config.image_size``.
        """
        if pixel_values.dim() != 4 or pixel_values.shape[2:] != 2 * (self.config.image_size,):
            raise BadInput(
                f"pixel_values {tuple(pixel_values.shape)}: images of {self.config.image_size} pixels a side."
            )
        patches = self.patches(pixel_values.to(self.patches.weight.dtype)).flatten(2).mT
        cls = self.cls_token.expand(len(patches), -1, -1)
        before, behind = patches[:, : self.cls_place], patches[:, self.cls_place :]
        return torch.cat([before, cls, behind], 1) + self.positions

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify ``pixel_values [B, channels, side, side]``; hidden states are those before each layer and last."""
        hidden = self.embed(pixel_values)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden)
            states.append(hidden)
        logits = self.classifier(self.norm(hidden[:, self.cls_place]))
        loss = cross_entropy(logits, labels) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=tuple(states) if output_hidden_states else None
        )


def register() -> None:
    """Let ``AutoModelForImageClassification`` load it."""
    AutoConfig.register(VimConfig.model_type, VimConfig, exist_ok=True)
    AutoModelForImageClassification.register(VimConfig, VimForImageClassification, exist_ok=True)
