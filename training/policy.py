"""Train `zoo/policy`, a small pi0 that reaches for the square it is told: `python training/policy.py`.

The published layout and transformers' own class: a SigLIP tower, a Gemma that reads picture and instruction, and an
action expert that reads its keys layer by layer and turns noise into a chunk of actions by flow matching. An auxiliary
head says of every image token, before the last layer, whether the named square is on it; it is thrown away.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PI0Config, PI0ForConditionalGeneration
from vision_common import ZOO, save, train, write_card

from tithe.bench.tasks import reach

FOLDER = ZOO / "policy"
WIDTH, LAYERS, BATCH = 64, 4, 32


def build_model() -> PI0ForConditionalGeneration:
    """A pi0 of 0.4 million parameters with untrained weights."""
    text = {
        "model_type": "gemma",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": reach.VOCAB,
        "pad_token_id": reach.PAD,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "image_size": reach.SIDE,
        "patch_size": reach.PATCH,
        "vision_use_head": False,
    }
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": vision,
            "projection_dim": WIDTH,
            "image_token_id": reach.IMAGE,
        },
        dit_config={name: value for name, value in text.items() if name != "vocab_size"},
        chunk_size=reach.CHUNK,
        max_state_dim=2,
        max_action_dim=2,
        num_inference_steps=10,
    )
    model = PI0ForConditionalGeneration(config)
    table = model.model.vlm.vision_tower.get_submodule("embeddings.position_embedding").weight
    table.data.copy_(positions())
    return model


def positions() -> Tensor:
    """2-D sine-cosine table ``[64, width]``, from which learned positions train quickly."""
    rates = 30.0 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = torch.arange(reach.GRID)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    return 0.3 * torch.cat([line.repeat_interleave(reach.GRID, 0), line.repeat(reach.GRID, 1)], 1)


def covered(world: reach.Scenes) -> Tensor:
    """How much of each image token the named square covers, more than a quarter counting: ``[B, 64]`` of 0 and 1."""
    edge = torch.arange(reach.GRID) * reach.PATCH
    side = 2 * reach.HALF + 1
    low = world.goal * reach.SIDE - side / 2
    shared = [
        (torch.minimum(edge + reach.PATCH, low[:, axis, None] + side) - torch.maximum(edge, low[:, axis, None])).clamp(
            min=0
        )
        for axis in (1, 0)
    ]
    return ((shared[0][:, :, None] * shared[1][:, None]).flatten(1) > reach.PATCH**2 / 4).float()


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.5, help="CPU minutes at most")
    parser.add_argument("--steps", type=int, default=2200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model().train()
    head, seen = nn.Linear(WIDTH, 1), []
    last = model.model.vlm.language_model.layers[-1]
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    start = time.process_time()
    done = 0

    class Enough(Exception):
        pass

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        nonlocal done
        if (time.process_time() - start) / 60 > args.minutes:
            raise Enough
        done = step + 1
        world = reach.scenes(BATCH, 100_000 + step)
        seen.clear()
        value = model(**reach.observe(world), actions=reach.expert(world)).loss
        named = binary_cross_entropy_with_logits(head(seen[0][:, : reach.TOKENS])[..., 0], covered(world))
        return value + 3 * named, {"loss": value.item(), "named": named.item()}

    def report(step: int) -> None:
        model.eval()
        save(model, FOLDER)
        print(f"{step}: success {reach.success(model):.3f}", flush=True)
        model.train()

    try:
        train([*model.parameters(), *head.parameters()], loss, args.steps, 1.5e-3, report, every=550)
    except Enough:
        print(f"stopped after {done} steps", flush=True)
    handle.remove()
    model.eval()
    save(model, FOLDER)
    write_card(
        FOLDER,
        name="zoo:policy",
        task="go to the square of the named colour; 6 requests, 2 of 4 actions carried out each time",
        architecture=f"PI0ForConditionalGeneration of {LAYERS} layers, width {WIDTH}, 64 image tokens",
        parameters=sum(p.numel() for p in model.parameters()),
        data="drawn by tithe.bench.tasks.reach",
        weights_licence="same as the project",
        command="python training/policy.py",
        seed=0,
        steps=done,
        cpu_minutes=round((time.process_time() - start) / 60, 1),
        batch=BATCH,
        test_cases=500,
        success=round(reach.success(reach.policy(), rows=500), 3),
    )


if __name__ == "__main__":
    main()
