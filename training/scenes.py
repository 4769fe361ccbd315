"""Train `zoo:scenes`, a LLaVA-OneVision that reads pages, albums and clips of digits: `python training/scenes.py`.

Tower and language model start from `zoo:vlm`. The tower first learns to name the digit and colour of every patch
of the smaller crops; then it is frozen, and connector and Llama learn questions about the scenes of a pool, each of
which sees only its scene and itself. Linear heads that are thrown away ask every image token inside the language
model what and where it is. Most steps leave out image tokens at random, at least one of each digit left: what
dropping tokens costs is then what they told, and not that some are missing.
`--keep-tower` starts from the shipped tower;
`--keep-all` from the whole shipped model.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from vision_common import DIGITS_LICENCE, DIGITS_SOURCE, MEAN, STD, ZOO, save, train, write_card
from vlm import VOCABULARY as VLM_WORDS

from tithe.bench.prompt import joined
from tithe.bench.tasks import canvas, scenes
from tithe.bench.tasks.pictures import composed
from tithe.zoo import Loaded
from tithe.zoo.stills import StillsProcessor

FOLDER = ZOO / "scenes"
WIDTH, SLOT, POOL = 128, 8, 400
ASKED = {"lines": 8, "strewn": 12, "album": 10, "clip": 12}
GRID = scenes.PICTURE // canvas.PATCH
PATCHES = GRID**2
MOSAIC = scenes.PAGE // canvas.PATCH
BATCH = {"lines": 5, "strewn": 4, "album": 4, "clip": 4}
WORDS = ["read", "how", "many", "which", "in", "picture", "at", "when", *scenes.NAMES, *scenes.COUNTS]
PLACES = [f"{axis}{n}" for axis in "rct" for n in range(1, 9)]
VOCABULARY = [*VLM_WORDS, "<video>", *WORDS, *PLACES]
IDS = {word: index for index, word in enumerate(VOCABULARY)}
HEADS = {"row": 8, "col": 8, "part": 8, "digit": 11, "colour": 7}
NOWHERE = -100


class Batch(NamedTuple):
    """Ids, targets (-100 where there is none) and positions [B, T], mask [1, 1, T, T]; of the image tokens that are
    left, which they are [B, n], and their labels in the order of `HEADS` [B, n, 5].
    """

    ids: Tensor
    targets: Tensor
    mask: Tensor
    positions: Tensor
    left: Tensor
    where: Tensor


def build_model() -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision whose tower and language model hold the weights of `zoo:vlm`."""
    vlm = LlavaForConditionalGeneration.from_pretrained(ZOO / "vlm", dtype=torch.float32)
    vision = CLIPVisionConfig(**{**vlm.config.vision_config.to_dict(), "image_size": scenes.PICTURE})
    text = LlamaConfig(**{**vlm.config.text_config.to_dict(), "vocab_size": len(VOCABULARY)})
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[scenes.PAGE, scenes.PAGE]],
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    mine, theirs = model.state_dict(), vlm.state_dict()
    for name, tensor in mine.items():
        if name.endswith("position_embedding.weight"):
            table = theirs[name][1:].view(canvas.GRID, canvas.GRID, -1)[:GRID, :GRID].flatten(0, 1)
            tensor.copy_(torch.cat([theirs[name][:1], table]))
        elif name in theirs and tensor.shape == theirs[name].shape:
            tensor.copy_(theirs[name])
        elif name in theirs:
            tensor[: len(theirs[name])] = theirs[name]
    return model


def build_processor() -> StillsProcessor:
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
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    shape: dict[str, Any] = {
        "size": {"height": scenes.PICTURE, "width": scenes.PICTURE},
        "image_mean": MEAN,
        "image_std": STD,
    }
    return StillsProcessor(
        LlavaOnevisionImageProcessorPil(**shape, image_grid_pinpoints=[[scenes.PAGE, scenes.PAGE]]),
        tokenizer,
        num_image_tokens=PATCHES + 1,
        vision_feature_select_strategy="default",
    )


def crops(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A page as the image processor cuts it: the whole at half size, then four quarters; uint8 [5, 32, 32, 3]."""
    side = scenes.PICTURE
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    quarters = [image[y : y + side, x : x + side] for y in (0, side) for x in (0, side)]
    return np.stack([small, *quarters])


def pixels(drawn: list[scenes.Scene]) -> Tensor:
    """Scenes of one form to float32 [B * crops, 3, 32, 32]."""
    cut = [crops(one.images[0]) if len(one.images) == 1 else one.images for one in drawn]
    return (torch.from_numpy(np.concatenate(cut)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


class Pool(NamedTuple):
    """Scenes of one form and what the frozen tower sees in them, float16 [n, crops, 64, d]."""

    drawn: list[scenes.Scene]
    patches: Tensor


@torch.no_grad()
def pool(model: LlavaOnevisionForConditionalGeneration, form: scenes.Form, seed: int) -> Pool:
    """Draw the scenes to train on and show them to the tower, once."""
    rng = np.random.default_rng([seed + 1, scenes.FORMS.index(form)])
    drawn = [scenes.scene(rng, "train", form) for _ in range(POOL)]
    seen = []
    for start in range(0, POOL, 20):
        some = drawn[start : start + 20]
        out = model.model.vision_tower(pixels(some), output_hidden_states=True).hidden_states[-2][:, 1:]
        seen.append(out.unflatten(0, (len(some), -1)).half())
    return Pool(drawn, torch.cat(seen))


def features(model: LlavaOnevisionForConditionalGeneration, form: scenes.Form, patches: Tensor) -> Tensor:
    """Patches [B, crops, 64, d] through the connector, to image tokens [B, n, d] as the language model reads them."""
    rows, read = len(patches), model.model.multi_modal_projector(patches.float())
    newline = model.model.image_newline
    if form == "clip":
        halved = model.model.apply_pooling(read.flatten(0, 1)).reshape(rows, -1, WIDTH)
        return torch.cat([halved, newline.expand(rows, 1, -1)], 1)
    album = form == "album"
    crops_of = list(read.flatten(0, 1)[:, None]) if album else list(read)
    side = scenes.PICTURE if album else scenes.PAGE
    packed, _ = model.model.pack_image_features(crops_of, torch.full((len(crops_of), 2), side), newline)
    return torch.cat(packed).view(rows, -1, WIDTH)


def labels(drawn: scenes.Scene) -> NDArray[np.int64]:
    """What each image token of a scene shows and where it lies: int64 [n, 5] in the order of `HEADS`."""
    digits, colours = scenes.cell_labels(drawn)
    n, side = digits.shape[:2]
    part, row, col = np.meshgrid(np.arange(n), np.arange(side), np.arange(side), indexing="ij")
    cells = np.stack([row, col, part, np.where(digits < 0, 10, digits), np.where(colours < 0, 6, colours)], -1)
    if drawn.form == "clip":
        return np.concatenate([cells.reshape(-1, 5), np.full((1, 5), NOWHERE)])
    fine = cells.repeat(2, 1).repeat(2, 2)
    if drawn.form == "album":
        flat = fine.reshape(n, -1, 5)
        return np.concatenate([flat, np.full((n, 1, 5), NOWHERE)], 1).reshape(-1, 5)
    lined = np.concatenate([fine[0], np.full((MOSAIC, 1, 5), NOWHERE)], 1).reshape(-1, 5)
    return np.concatenate([cells[0].reshape(-1, 5), lined])


def prompt(form: scenes.Form) -> list[str]:
    """The words of a prompt up to its question."""
    if form == "clip":
        return ["<s>"] + ["<video>"] * (scenes.FRAMES * PATCHES // 4 + 1)
    if form == "album":
        pictures = ([f"picture {scenes.NAMES[n]}", *["<image>"] * (PATCHES + 1)] for n in range(scenes.PICTURES))
        return ["<s>", *(word for picture in pictures for words in picture for word in words.split())]
    return ["<s>"] + ["<image>"] * (PATCHES + MOSAIC * (MOSAIC + 1))


def kept(rng: np.random.Generator, where: NDArray[np.int64], form: scenes.Form, count: int) -> NDArray[np.int64]:
    """Which image tokens of a scene are left, [count] in order; where there is room, one at least tells of each digit.

    A digit of a clip is one token; of a page the whole at half size does not count, nor does it tell digits apart.
    """
    shows = (where[:, 3] >= 0) & (where[:, 3] < 10)
    coarse = np.arange(len(where)) < (PATCHES if form in ("lines", "strewn") else 0)
    group = np.where(shows & ~coarse, (where[:, 2] * 8 + where[:, 0]) * 8 + where[:, 1], -1)
    order = rng.permutation(len(where))
    _, first = np.unique(group[order], return_index=True)
    rank = np.empty(len(where))
    rank[order] = np.arange(len(where))
    anchors = order[first]
    rank[anchors[group[anchors] >= 0]] -= len(where)
    return np.sort(np.argsort(rank)[:count])


def share_left(rng: np.random.Generator, form: scenes.Form, done: float) -> float:
    """Which share of the image tokens a step leaves: few at first, all of them more and more often towards the end."""
    least = 0.15 if form == "clip" else 0.08
    if done < 0.6:
        return float(rng.uniform(least, 0.25))
    return 1.0 if rng.random() < 0.4 else float(rng.uniform(least, 0.8))


def questions(form: scenes.Form, drawn: list[scenes.Scene], rng: np.random.Generator, share: float) -> Batch:
    """Lay questions side by side after each scene, of whose image tokens a share is left."""
    asked_of, before = ASKED[form], np.array([IDS[word] for word in prompt(form)])
    places = np.flatnonzero((before == IDS["<image>"]) | (before == IDS["<video>"]))
    words_at = np.setdiff1d(np.arange(len(before)), places)
    rows, marks, left, where, positions = [], [], [], [], []
    for one in drawn:
        told = labels(one)
        chosen = kept(rng, told, form, round(share * len(places)))
        columns = np.sort(np.concatenate([words_at, places[chosen]]))
        row, mark = before[columns].tolist(), [NOWHERE] * len(columns)
        kinds = scenes.ASKED_OF[form]
        for _ in range(asked_of):
            asked = scenes.ask(rng, one, kinds[rng.integers(len(kinds))])
            words, answer = ([IDS[word] for word in text.split()] for text in (asked.text, asked.answer))
            idle = SLOT - len(words) - len(answer)
            row += [*words, *answer] + [IDS["<pad>"]] * idle
            mark += [NOWHERE] * (len(words) - 1) + [*answer, IDS["</s>"]] + [NOWHERE] * idle
        rows.append(row)
        marks.append(mark)
        left.append(chosen)
        where.append(told[chosen])
        positions.append(np.concatenate([columns, len(before) + np.tile(np.arange(SLOT), asked_of)]))
    prefix = len(rows[0]) - asked_of * SLOT
    block = torch.cat([torch.full((prefix,), -1), torch.arange(asked_of).repeat_interleave(SLOT)])
    seen = (block[None] == -1) | (block[:, None] == block[None])
    mask = torch.ones(len(block), len(block), dtype=torch.bool).tril() & seen
    stacked = (torch.from_numpy(np.stack(lists)) for lists in (rows, marks, positions, left, where))
    ids, targets, at, kept_tokens, told_of = stacked
    return Batch(ids, targets, mask[None, None], at, kept_tokens, told_of)


def train_tower(model: LlavaOnevisionForConditionalGeneration, steps: int, seed: int) -> float:
    """Train the tower on what every patch shows, and CLS on which digits are there. Returns CPU minutes."""
    tower = model.model.vision_tower
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, HEADS[name]) for name in ("digit", "colour")})
    present = nn.Linear(WIDTH, 10)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        drawn = [scenes.scene(rng, "train", form) for form in scenes.FORMS for _ in range(2)]
        shown = torch.from_numpy(np.concatenate([_patch_labels(one) for one in drawn]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = tower(torch.cat([pixels([one]) for one in drawn]), output_hidden_states=True)
            patches = out.hidden_states[-2][:, 1:]
            parts = {
                name: cross_entropy(head(patches).float().flatten(0, 1), shown[..., place].flatten())
                for place, (name, head) in enumerate(heads.items())
            }
            there = nn.functional.one_hot(shown[..., 0], 11).amax(1)[:, :10].float()
            bag = nn.functional.binary_cross_entropy_with_logits(present(out.pooler_output).float(), there)
        told = {**{name: part.item() for name, part in parts.items()}, "bag": bag.item()}
        return parts["digit"] + 0.5 * parts["colour"] + 0.3 * bag, told

    modules = nn.ModuleList([tower, heads, present])
    return train(modules.parameters(), loss, steps, 1e-3, lambda _: None)


def _patch_labels(drawn: scenes.Scene) -> NDArray[np.int64]:
    """Digit and colour of every patch of every crop, int64 [crops, 64, 2]."""
    digits, colours = scenes.cell_labels(drawn)
    cells = np.stack([np.where(digits < 0, 10, digits), np.where(colours < 0, 6, colours)], -1)
    fine = cells.repeat(2, 1).repeat(2, 2)
    if len(fine) > 1:
        return fine.reshape(len(fine), PATCHES, 2)
    quarters = [fine[0, y : y + GRID, x : x + GRID] for y in (0, GRID) for x in (0, GRID)]
    return np.stack([cells[0], *quarters]).reshape(-1, PATCHES, 2)


def train_language(model: LlavaOnevisionForConditionalGeneration, steps: int, rate: float, seed: int) -> float:
    """Train connector and language model on a frozen tower. Returns CPU minutes."""
    model.model.vision_tower.requires_grad_(False)
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, classes) for name, classes in HEADS.items()})
    pools = {form: pool(model, form, seed) for form in scenes.FORMS}
    recent: dict[str, float] = {}

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed + 2, step])
        total = torch.zeros(())
        for form, (known, patches) in pools.items():
            chosen = rng.permutation(POOL)[: BATCH[form]]
            drawn = [known[place] for place in chosen]
            batch = questions(form, drawn, rng, share_left(rng, form, step / steps))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                words = model.get_input_embeddings()(batch.ids)
                shown = features(model, form, patches[chosen]).to(words.dtype)
                shown = shown.gather(1, batch.left[..., None].expand(-1, -1, WIDTH))
                places = (batch.ids == IDS["<image>"]) | (batch.ids == IDS["<video>"])
                out = model.model.language_model(
                    inputs_embeds=words.masked_scatter(places[..., None], shown),
                    attention_mask=batch.mask.expand(len(drawn), -1, -1, -1),
                    position_ids=batch.positions,
                    use_cache=False,
                    output_hidden_states=True,
                )
                told = batch.targets != NOWHERE
                each = cross_entropy(
                    model.lm_head(out.last_hidden_state[told]).float(), batch.targets[told], reduction="none"
                )
                inner, where = out.hidden_states[2][places], batch.where.flatten(0, 1)
                located = [
                    cross_entropy(head(inner).float(), where[:, place], ignore_index=NOWHERE)
                    for place, head in enumerate(heads.values())
                ]
            ends = batch.targets[told] == IDS["</s>"]
            answer = each[~ends].mean()
            recent[form] = 0.9 * recent.get(form, answer.item()) + 0.1 * answer.item()
            recent[f"{form}@"] = sum(part.item() for part in located[:3])
            total = total + answer + 0.1 * each[ends].mean() + torch.stack(located).mean()
        return total, recent

    def report(step: int) -> None:
        save(model, FOLDER)
        print(f"      {step} {accuracy(model, 16)}", flush=True)

    trained = [p for p in model.parameters() if p.requires_grad] + list(heads.parameters())
    return train(trained, loss, steps, rate, report, 300)


@torch.no_grad()
def accuracy(model: Any, cases: int) -> dict[str, float]:
    """Share of test questions answered right in full, through processor and `generate`, by kind."""
    loaded, right = Loaded(model, build_processor(), "vlm"), {}
    model.eval()
    for kind in scenes.KINDS:
        hits = 0
        for seed in range(cases):
            case = scenes.case(seed, "test", [kind])
            prompt = composed(loaded, case)
            expected = [IDS[word] for word in case.question.answer.split()]
            out = model.generate(
                **joined(prompt.inputs, prompt.asks[0].ids), max_new_tokens=len(expected), do_sample=False
            )
            hits += out[0, -len(expected) :].tolist() == expected
        right[kind] = round(hits / cases, 3)
    model.train()
    return right


def main() -> None:
    """Train, ship and measure what was shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tower-steps", type=int, default=350)
    parser.add_argument("--language-steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-tower", action="store_true")
    parser.add_argument("--keep-all", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = build_model()
    build_processor().save_pretrained(FOLDER)
    tower_minutes = None
    if asked.keep_tower or asked.keep_all:
        shipped = LlavaOnevisionForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
        part = model if asked.keep_all else model.model.vision_tower
        part.load_state_dict((shipped if asked.keep_all else shipped.model.vision_tower).state_dict())
    else:
        tower_minutes = train_tower(model, asked.tower_steps, asked.seed)
        save(model, FOLDER)
    language_minutes = train_language(model, asked.language_steps, asked.rate, asked.seed)
    save(model, FOLDER)
    shipped = LlavaOnevisionForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    write_card(
        FOLDER,
        name="zoo:scenes",
        task="read a line of a page, count and find digits on it, find digits in albums of pictures and in clips",
        architecture="LlavaOnevisionForConditionalGeneration: CLIP tower of 5 layers on crops of 32 x 32 pixels, "
        "64 tokens each, Llama of 4 layers, width 128; pages of 64 x 64 as base and 2 x 2 crops",
        parameters=sum(p.numel() for p in shipped.parameters()),
        start="zoo:vlm",
        data=DIGITS_SOURCE,
        data_licence=DIGITS_LICENCE,
        weights_licence="same as the project",
        command="python training/scenes.py",
        seed=asked.seed,
        tower_steps=asked.tower_steps,
        language_steps=asked.language_steps,
        tower_cpu_minutes=tower_minutes and round(tower_minutes, 1),
        language_cpu_minutes=round(language_minutes, 1),
        batch=BATCH,
        test_cases=200,
        accuracy=accuracy(shipped, 200),
    )


if __name__ == "__main__":
    main()
