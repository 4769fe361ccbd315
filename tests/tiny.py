"""Tiny random models for shapes and equality; trained ones are in the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


def made(model: type[PreTrainedModel], config: type[Any], **extra: Any) -> PreTrainedModel:
    """Return a model with seeded random weights."""
    torch.manual_seed(0)
    return model(config(**{**COMMON, **extra})).eval()


TEXT: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: made(LlamaForCausalLM, LlamaConfig, head_dim=16),
    "mistral": lambda: made(MistralForCausalLM, MistralConfig, head_dim=16, sliding_window=24),
    "qwen2": lambda: made(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": lambda: made(Qwen3ForCausalLM, Qwen3Config, head_dim=16),
    "phi3": lambda: made(Phi3ForCausalLM, Phi3Config),
    "olmo2": lambda: made(Olmo2ForCausalLM, Olmo2Config),
    "mixtral": lambda: made(MixtralForCausalLM, MixtralConfig, head_dim=16, num_local_experts=4),
    "gemma3": lambda: made(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        head_dim=16,
        sliding_window=24,
        query_pre_attn_scalar=16,
        initializer_range=0.1,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
