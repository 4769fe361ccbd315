"""The zoo's language model before training: a small Llama with previous-token heads written in."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

THETA = 1e4
HEAD_DIM = 32


def new_model(tokenizer: Any, *, window: int) -> LlamaForCausalLM:
    """Four layers of four heads, two key-value heads each, 1.06 M parameters.

    Attention bias and the wide initial range are what lets induction emerge within minutes.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=window,
        initializer_range=0.06,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )
    model = LlamaForCausalLM(config)
    look_back(model, offsets=(1, 2))
    return model


@torch.no_grad()
def look_back(
    model: LlamaForCausalLM, *, offsets: tuple[int, ...], amplitude: float = 5.5, frequencies: int = 6
) -> None:
    """Start the first heads of layer 0, which share a key-value head, attending to fixed offsets back.

    With constant queries and keys, RoPE scores position j from i by a sum of cos((i - j - offset) w) over the
    frequencies w, which peaks at the offset. Written in biases, the heads stay free to learn otherwise.
    """
    attention = model.model.layers[0].self_attn
    rates = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    on = (torch.arange(HEAD_DIM // 2) < frequencies).float() * amplitude
    attention.k_proj.weight[:HEAD_DIM] = 0
    attention.k_proj.bias[:HEAD_DIM] = torch.cat([on, torch.zeros_like(on)])
    for head, offset in enumerate(offsets):
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        attention.q_proj.weight[rows] = 0
        turn = offset * rates
        attention.q_proj.bias[rows] = torch.cat([on * torch.cos(turn), -on * torch.sin(turn)])
