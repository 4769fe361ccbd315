"""What methods inside the language model are tested on: recorded weights, and a plain Llama written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from methods.context.recorded import vector
from methods.vision.contract import model, prompts
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tithe
from tithe.bench.tasks import canvas
from tithe.scores.random import hashed
from tithe.types import Method
from tithe.zoo.loader import load

WEIGHTS, _ = vector("fastv")
IMAGE, FIRST, SIZE, LENGTH, LAYERS = 60, 5, 36, 48, 5
Between = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def recorded() -> LlavaForConditionalGeneration:
    """A LLaVA with the recorded Llama (those of FastV's vectors), whose word ``i`` is embedded as column ``i`` was."""
    text = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=5, num_attention_heads=2, pad_token_id=0
    )
    eye = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8)
    one = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eye, text_config=text, image_token_index=IMAGE)
    ).eval()
    one.config.image_token_id = IMAGE
    weights = {name[2:]: value for name, value in WEIGHTS.items() if name.startswith("w.")}
    one.model.language_model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        one.model.language_model.embed_tokens.weight[:LENGTH] = WEIGHTS["inputs_embeds"][0]
    return one


def play(method: Method) -> tuple[Tensor, Any, dict[int, Tensor]]:
    """Read the recorded prompt; return the last hidden states, the run, and what entered each layer."""
    one = recorded()
    ids = torch.arange(LENGTH)[None].clone()
    ids[:, FIRST : FIRST + SIZE] = IMAGE
    seen = {"image": BaseModelOutputWithPooling(pooler_output=[*WEIGHTS["inputs_embeds"][:, FIRST : FIRST + SIZE]])}
    out: list[Tensor] = []
    entering: dict[int, Tensor] = {}
    inner = one.model.language_model
    inner.norm.register_forward_hook(lambda module, args, output: out.append(output))

    def note(index: int) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            entering[index] = args[0][0]

        return hook

    for index, layer in enumerate(inner.layers):
        layer.input_layernorm.register_forward_pre_hook(note(index))
    with tithe.on(one, method, level="scores") as run, torch.no_grad():
        one(input_ids=ids, mm_encoder_outputs=seen, use_cache=False)
    return out[0][0], run, entering


def columns(event: Any, row: int = 0) -> list[int]:
    """The columns that an event kept."""
    return event.cols[row, 0][event.keep[row, 0]].tolist()


# -- the trained LLaVA -------------------------------------------------------------------------------------------------


def answered(method: Method) -> float:
    """The share of two-hop questions that the trained LLaVA answers rightly under ``method``."""
    vlm, processor = load("vlm")
    cases = [canvas.vqa_case(seed, "test", "beside") for seed in range(40)]
    images, text = [Image.fromarray(case.image) for case in cases], [f"<image> {case.question}" for case in cases]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")
    with tithe.on(vlm, method), torch.no_grad():
        out = vlm.generate(**inputs, max_new_tokens=1, do_sample=False)
    told = processor.batch_decode(out[:, -1:], skip_special_tokens=True)
    return sum(word.strip() == case.answer for word, case in zip(told, cases, strict=True)) / len(cases)


def by_chance(method: Method) -> Method:
    """The same stages with random scores."""
    return replace(method, steps=tuple(replace(one, score=lambda e, t: hashed(t, 1, 0, 0)) for one in method.steps))


# -- a Llama by hand, for one row ------------------------------------------------------------------------------------


def turned(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """RoPE of ``x [H, n, d]``."""
    dim = x.shape[-1]
    angles = positions.double()[:, None] * theta ** (-torch.arange(0, dim, 2).double() / dim)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
    return x * cos + half * sin


def attention(layer: Any, normed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Output and probabilities ``[H, n, n]`` of causal attention over ``normed [n, d]``, in float64."""
    own = layer.self_attn

    def heads(weight: Tensor) -> Tensor:
        return (normed @ weight.double().T).view(len(normed), -1, own.head_dim).transpose(0, 1)

    q, k = (turned(heads(part.weight), positions) for part in (own.q_proj, own.k_proj))
    v = heads(own.v_proj.weight)
    k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
    logits = q @ k.transpose(1, 2) * own.head_dim**-0.5
    hidden = positions[None] > positions[:, None]
    probs = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return (probs @ v).transpose(0, 1).flatten(1) @ own.o_proj.weight.double().T, probs


def normal(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm in float64."""
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()


class Loops:
    """The tiny LLaVA's text tower by hand, one row at a time, in float64.

    ``before(layer, x [n, d], cols [n])`` stands before each layer and returns what flows on.
    """

    def __init__(self, rows: list[int]) -> None:
        self.inputs = prompts(rows)
        self.tower = model().model.language_model
        with torch.no_grad():
            grabbed: list[Tensor] = []
            handle = self.tower.layers[0].register_forward_pre_hook(lambda module, args: grabbed.append(args[0]))
            model()(**self.inputs)
            handle.remove()
        self.embedded = grabbed[0].double()
        self.image = self.inputs["input_ids"] == model().config.image_token_id

    @torch.no_grad()
    def row(self, row: int, before: Between) -> Tensor:
        """The logits of the last token of a row; ``self`` holds what each layer did, by layer."""
        alive = self.inputs["attention_mask"][row].bool()
        cols = alive.nonzero()[:, 0]
        x, pads = self.embedded[row, alive], int((~alive).sum())
        self.probs, self.parts, self.cols = {}, {}, {}
        for index, layer in enumerate(self.tower.layers):
            x, cols = before(index, x, cols)
            first = normal(x, layer.input_layernorm)
            out, self.probs[index] = attention(layer, first, cols - pads)
            x = x + out
            second = normal(x, layer.post_attention_layernorm)
            own = layer.mlp
            gate, up, down = (part.weight.double() for part in (own.gate_proj, own.up_proj, own.down_proj))
            made = (torch.nn.functional.silu(second @ gate.T) * (second @ up.T)) @ down.T
            self.parts[index], self.cols[index] = ((first, out), (second, made)), cols
            x = x + made
        return normal(x[-1], self.tower.norm) @ model().lm_head.weight.double().T

    def ahead(self, index: int, x: Tensor, cols: Tensor, row: int) -> Tensor:
        """Probabilities ``[H, n, n]`` that layer ``index`` would have."""
        pads = int((self.inputs["attention_mask"][row] == 0).sum())
        layer = self.tower.layers[index]
        return attention(layer, normal(x, layer.input_layernorm), cols - pads)[1]
