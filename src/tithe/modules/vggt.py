"""A visual geometry transformer with the layout of VGGT (Wang et al. 2025, arXiv:2503.11651), to train small ones.

Frames are cut into patches; a camera token and registers stand before those of each frame, the first frame having its
own. Layers alternate: attention within each frame, then attention over all tokens of all frames. Camera tokens give
the poses, patch tokens the depth. Queries and keys are normalised, turned by a rotary embedding of the patch's row and
column (the special tokens stand at 0), and every branch is scaled by a learned factor.

Deviation: patches come from one convolution where VGGT has a DINOv2; a pose is read by one MLP where VGGT refines it
four times, and depth by a linear map of each patch where VGGT has a DPT; no tracks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

POSE = 9


class VGGTConfig(PreTrainedConfig):
    """Sizes of a model: ``num_hidden_layers`` counts pairs of a frame layer and a global layer."""

    model_type = "vggt"

    def __init__(
        self,
        hidden_size: int = 64,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int = 256,
        image_size: int = 32,
        patch_size: int = 4,
        num_register_tokens: int = 4,
        rope_theta: float = 100.0,
        layer_scale: float = 0.01,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_register_tokens = num_register_tokens
        self.rope_theta = rope_theta
        self.layer_scale = layer_scale
        super().__init__(**kwargs)


@dataclass
class VGGTOutput(ModelOutput):
    """``pose [B, F, 9]`` (translation, quaternion, field of view), ``depth, confidence [B, F, H, W]``, the tokens."""

    pose: Tensor | None = None
    depth: Tensor | None = None
    confidence: Tensor | None = None
    last_hidden_state: Tensor | None = None


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attend with the whole matrix of probabilities in memory."""
    logits = query @ key.transpose(2, 3) * scaling
    weights = (logits if mask is None else logits + mask).float().softmax(-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def rotary(places: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines ``[n, dim]`` of ``places [n, 2]``: rows turn the first half of a head, columns the rest.

    ``dim`` is that of a head, a multiple of 4.
    """
    rate = theta ** -(torch.arange(0, dim // 2, 2, device=places.device).float() / (dim // 2))
    angles = (places.float()[:, :, None] * rate).repeat(1, 1, 2).flatten(1)
    return angles.cos(), angles.sin()


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (part.to(x.dtype) for part in turn)
    halves = x.unflatten(-1, (2, 2, -1))
    swapped = torch.stack([-halves[..., 1, :], halves[..., 0, :]], -2).flatten(-3)
    return x * cos + swapped * sin


class Attention(nn.Module):
    """Attention over whatever lies along the second axis."""

    is_causal = False

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.num_key_value_groups, self.scaling = 1, self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Return the attention output of ``hidden [B, n, d]``."""
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = _turned(self.q_norm(query), turn), _turned(self.k_norm(key), turn)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return self.proj(out.flatten(2))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and a learned scale."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.intermediate_size), nn.GELU(), nn.Linear(config.intermediate_size, width)
        )
        self.scale1 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.scale2 = nn.Parameter(torch.full((width,), config.layer_scale))

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Return ``hidden [B, n, d]`` after the block."""
        hidden = hidden + self.scale1 * self.attention(self.norm1(hidden), turn)
        return hidden + self.scale2 * self.mlp(self.norm2(hidden))


class Aggregator(nn.Module):
    """The alternating layers: ``frame_blocks`` and ``global_blocks``."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.special = 1 + config.num_register_tokens
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.camera_token = nn.Parameter(torch.randn(2, 1, width) * 0.02)
        self.register_token = nn.Parameter(torch.randn(2, config.num_register_tokens, width) * 0.02)
        self.frame_blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.global_blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, F, specials + patches, 2 d]``: what the last frame layer and the last global layer left."""
        rows, frames = images.shape[:2]
        found = self.patches(images.flatten(0, 1))
        places = self._places(found.shape[2:], found.device)
        found = found.flatten(2).mT.unflatten(0, (rows, frames))
        own = torch.cat([self.camera_token, self.register_token], 1)
        first = (torch.arange(frames, device=images.device) > 0).long()
        tokens = torch.cat([own[first].expand(rows, -1, -1, -1), found], 2)
        dim = self.config.hidden_size // self.config.num_attention_heads
        turn = rotary(places, dim, self.config.rope_theta)
        everywhere = rotary(places.repeat(frames, 1), dim, self.config.rope_theta)
        within = tokens
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            within = frame_block(tokens.flatten(0, 1), turn).view_as(tokens)
            tokens = global_block(within.flatten(1, 2), everywhere).view_as(tokens)
        return torch.cat([within, tokens], -1)

    def _places(self, grid: Any, device: torch.device) -> Tensor:
        rows, columns = (torch.arange(side, device=device) + 1 for side in grid)
        return torch.cat(
            [torch.zeros(self.special, 2, dtype=torch.long, device=device), torch.cartesian_prod(rows, columns)]
        )


class VGGT(PreTrainedModel):
    """Frames in, poses and depths out; the first frame is the reference."""

    config_class = VGGTConfig
    config: VGGTConfig
    base_model_prefix = "aggregator"
    main_input_name = "images"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__(config)
        width = 2 * config.hidden_size
        self.aggregator = Aggregator(config)
        self.norm = nn.LayerNorm(width)
        self.pose = nn.Sequential(nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, POSE))
        self.depth = nn.Linear(width, 2 * config.patch_size**2)
        self.post_init()

    def forward(self, images: Tensor) -> VGGTOutput:
        """Read ``images [B, F, 3, H, W]``; H and W are multiples of the patch size."""
        found = self.norm(self.aggregator(images))
        special, side = self.aggregator.special, self.config.patch_size
        high, wide = images.shape[3] // side, images.shape[4] // side
        maps = self.depth(found[:, :, special:]).unflatten(2, (high, wide)).unflatten(-1, (2, side, side))
        log_depth, log_confidence = maps.permute(4, 0, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
        return VGGTOutput(
            pose=self.pose(found[:, :, 0]),
            depth=log_depth.exp(),
            confidence=1 + log_confidence.exp(),
            last_hidden_state=found,
        )
