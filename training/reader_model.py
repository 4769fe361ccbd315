"""The zoo's reader before training: the zoo's language model with further layers that do nothing yet."""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers import LlamaForCausalLM


@torch.no_grad()
def grown(base: LlamaForCausalLM, places: tuple[int, ...]) -> LlamaForCausalLM:
    """A copy of `base` with a new layer before each layer in `places` (of `base`; its layer count: at the end).

    A new layer's output projections are zero, so the model computes what it did; all else is drawn as usual.
    """
    config = deepcopy(base.config)
    config.num_hidden_layers += len(places)
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(base.model.norm.state_dict())
    model.tie_weights()
    old = list(base.model.layers)
    order = [item for index in range(len(old) + 1) for item in (*[None] * places.count(index), *old[index : index + 1])]
    for new, layer in zip(model.model.layers, order, strict=True):
        if layer is not None:
            new.load_state_dict(layer.state_dict())
        else:
            for projection in (new.self_attn.o_proj, new.mlp.down_proj):
                projection.weight.zero_()
            new.self_attn.o_proj.bias.zero_()
    return model
