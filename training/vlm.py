"""Train `zoo:vlm`, a LLaVA that answers questions about canvases of digits: `python training/vlm.py`.

First the CLIP tower learns to name the digit and colour of every patch on the features that the language
model will read, and the digit of every quadrant on CLS. Then it is frozen, and projector and Llama learn ten
questions an image, each of which sees only the image and itself; two-hop questions join at half time.
`--keep-tower` starts from the shipped tower.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vision_common import (
    DIGITS_LICENCE,
    DIGITS_SOURCE,
    MEAN,
    STD,
    ZOO,
    pixels,
    position_table,
    save,
    train,
    write_card,
)

from tithe.bench.tasks import canvas

FOLDER = ZOO / "vlm"
WIDTH, BATCH, ASKED, SLOT = 128, 16, 10, 7
CLASSES = canvas.EMPTY + 1
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = ["what", "digit", "colour", "is", "where", "beside"]
VOCABULARY = [*SPECIAL, *WORDS, *canvas.QUADRANTS, *map(str, range(10)), *canvas.COLOUR_NAMES]
IDS = {word: index for index, word in enumerate(VOCABULARY)}
PATCHES = canvas.GRID**2
PREFIX = 1 + PATCHES


class Batch(NamedTuple):
    """Ids and targets (-100 where there is none) [B, T], mask [1, 1, T, T], positions [1, T]."""

    ids: Tensor
    targets: Tensor
    mask: Tensor
    positions: Tensor


def build_model() -> LlavaForConditionalGeneration:
    """A LLaVA of 1.3 million parameters with untrained weights."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=canvas.SIDE,
        patch_size=canvas.PATCH,
        projection_dim=WIDTH,
        initializer_range=0.06,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=IDS["<s>"],
        eos_token_id=IDS["</s>"],
        pad_token_id=IDS["<pad>"],
        initializer_range=0.06,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IDS["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    positions = [p for n, p in model.named_parameters() if n.endswith("position_embedding.weight")]
    positions[0].data.copy_(position_table(WIDTH))
    return model


def build_processor() -> LlavaProcessor:
    """Word-level tokenizer, begun by <s>, and the PIL image processor."""
    words = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", IDS["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens={"image_token": "<image>"},
    )
    image = CLIPImageProcessorPil(
        size={"shortest_edge": canvas.SIDE},
        crop_size={"height": canvas.SIDE, "width": canvas.SIDE},
        image_mean=MEAN,
        image_std=STD,
    )
    return LlavaProcessor(
        image,
        tokenizer,
        patch_size=canvas.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def scenes(step: int, seed: int) -> tuple[list[canvas.Scene], np.random.Generator]:
    """The canvases of a step and the generator that goes on to ask about them."""
    rng = np.random.default_rng([seed, step])
    return [canvas.scene(rng, "train") for _ in range(BATCH)], rng


def train_tower(model: LlavaForConditionalGeneration, steps: int, seed: int) -> float:
    """Train the tower on dense labels; the heads are thrown away. Returns CPU minutes."""
    tower = model.model.vision_tower
    digit, colour, quadrant = (nn.Linear(WIDTH, n) for n in (CLASSES, len(canvas.COLOURS) + 1, 4 * CLASSES))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        drawn, _ = scenes(step, seed)
        dense = [canvas.patch_labels(scene) for scene in drawn]
        digits = torch.from_numpy(np.stack([d for d, _ in dense])).flatten()
        colours = torch.from_numpy(np.stack([c for _, c in dense])).flatten()
        quadrants = torch.from_numpy(np.stack([canvas.quadrant_labels(s) for s in drawn])).flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = tower(pixels(s.image for s in drawn), output_hidden_states=True)
            patches = out.hidden_states[-2][:, 1:].flatten(0, 1)
            by_digit = cross_entropy(digit(patches).float(), digits)
            by_colour = cross_entropy(colour(patches).float(), colours)
            by_quadrant = cross_entropy(quadrant(out.pooler_output).float().view(-1, CLASSES), quadrants)
        parts = {"digit": by_digit.item(), "colour": by_colour.item(), "quadrant": by_quadrant.item()}
        return by_digit + 0.5 * by_colour + 0.3 * by_quadrant, parts

    modules = nn.ModuleList([tower, digit, colour, quadrant])
    return train(modules.parameters(), loss, steps, 1e-3, lambda _: None)


def questions(drawn: list[canvas.Scene], rng: np.random.Generator, two_hop: float) -> Batch:
    """Lay ten questions side by side after each image; `two_hop` is the share of `beside` among them."""
    rows: list[list[int]] = []
    marks: list[list[int]] = []
    for scene in drawn:
        row, mark = [IDS["<s>"]] + [IDS["<image>"]] * PATCHES, [-100] * PREFIX
        paired = len({cell.quadrant // 2 for cell in scene.cells}) < len(scene.cells)
        for _ in range(ASKED):
            hop = paired and rng.random() < two_hop
            kind: canvas.Kind = "beside" if hop else canvas.ONE_HOP[rng.integers(len(canvas.ONE_HOP))]
            asked = canvas.ask(rng, scene, kind)
            words = [IDS[word] for word in asked.text.split()]
            answer = IDS[asked.answer]
            idle = SLOT - len(words) - 1
            row += [*words, answer] + [IDS["<pad>"]] * idle
            mark += [-100] * (len(words) - 1) + [answer, IDS["</s>"]] + [-100] * idle
        rows.append(row)
        marks.append(mark)
    length = PREFIX + ASKED * SLOT
    block = torch.cat([torch.full((PREFIX,), -1), torch.arange(ASKED).repeat_interleave(SLOT)])
    seen = (block[None] == -1) | (block[:, None] == block[None])
    mask = torch.ones(length, length, dtype=torch.bool).tril() & seen
    positions = torch.cat([torch.arange(PREFIX), PREFIX + torch.arange(SLOT).repeat(ASKED)])
    return Batch(torch.tensor(rows), torch.tensor(marks), mask[None, None], positions[None])


def train_language(model: LlavaForConditionalGeneration, steps: int, seed: int) -> float:
    """Train projector and language model on a frozen tower. Returns CPU minutes."""
    model.model.vision_tower.requires_grad_(False)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        drawn, rng = scenes(step, seed + 1)
        batch = questions(drawn, rng, 0.3 if step > steps // 2 else 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(
                input_ids=batch.ids,
                pixel_values=pixels(s.image for s in drawn),
                attention_mask=batch.mask.expand(BATCH, -1, -1, -1),
                position_ids=batch.positions.expand(BATCH, -1),
                use_cache=False,
            ).last_hidden_state
            told = batch.targets != -100
            each = cross_entropy(model.lm_head(hidden[told]).float(), batch.targets[told], reduction="none")
        ends = batch.targets[told] == IDS["</s>"]
        answer, end = each[~ends].mean(), each[ends].mean()
        return answer + 0.1 * end, {"answer": answer.item(), "end": end.item()}

    def report(step: int) -> None:
        save(model, FOLDER)
        print(f"      {step} test accuracy {accuracy(model, 320):.3f}", flush=True)

    return train((p for p in model.parameters() if p.requires_grad), loss, steps, 2e-3, report)


@torch.no_grad()
def accuracy(model: Any, cases: int, kind: canvas.Kind | None = None) -> float:
    """Share of test questions answered, through processor, left-padded batches and `generate`."""
    processor: Any = build_processor()
    right = 0
    model.eval()
    for start in range(0, cases, 32):
        batch = [canvas.vqa_case(seed, "test", kind) for seed in range(start, min(start + 32, cases))]
        inputs = processor(
            images=[Image.fromarray(case.image) for case in batch],
            text=[f"<image> {case.question}" for case in batch],
            padding=True,
            return_tensors="pt",
        )
        out = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        right += sum(VOCABULARY[int(row[-1])] == case.answer for row, case in zip(out, batch, strict=True))
    model.train()
    return right / cases


def main() -> None:
    """Train, ship and measure what was shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tower-steps", type=int, default=1300)
    parser.add_argument("--language-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-tower", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = build_model()
    build_processor().save_pretrained(FOLDER)
    tower_minutes = None
    if asked.keep_tower:
        shipped = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
        model.model.vision_tower.load_state_dict(shipped.model.vision_tower.state_dict())
    else:
        tower_minutes = train_tower(model, asked.tower_steps, asked.seed)
        save(model, FOLDER)
    language_minutes = train_language(model, asked.language_steps, asked.seed)
    save(model, FOLDER)
    shipped = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    write_card(
        FOLDER,
        name="zoo:vlm",
        task="answer one question about the digits on a 48 x 48 canvas: "
        "what digit, what colour, where (one hop); what stands beside (two hops)",
        architecture="LlavaForConditionalGeneration: CLIP tower of 5 layers, Llama of 4 layers, width 128",
        parameters=sum(p.numel() for p in shipped.parameters()),
        data=DIGITS_SOURCE,
        data_licence=DIGITS_LICENCE,
        weights_licence="same as the project",
        command="python training/vlm.py",
        seed=asked.seed,
        tower_steps=asked.tower_steps,
        language_steps=asked.language_steps,
        tower_cpu_minutes=tower_minutes and round(tower_minutes, 1),
        language_cpu_minutes=round(language_minutes, 1),
        batch=BATCH,
        test_cases=1000,
        accuracy={
            "one-hop": accuracy(shipped, 1000),
            **{kind: accuracy(shipped, 500, kind) for kind in canvas.KINDS},
        },
    )


if __name__ == "__main__":
    main()
