from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import tiny_vision
import torch
from methods.vision.contract import CASES, asked, contract, generated, model, prompts, right, vector
from methods.vision.unmerging import Choose, merged_tower, virtual_logits
from PIL import Image
from torch import Tensor

import tithe
from tithe.actions.apart import MergeApart
from tithe.bench.tasks import canvas
from tithe.errors import BadInput, Refused
from tithe.profiling.drift import Sample
from tithe.seams.blocks import BlockSeam, BlockState
from tithe.seams.stores import View
from tithe.seams.stream import Stream
from tithe.seams.virtual import expanded
from tithe.selections.thresholds import AlikeEnough, AlikeInBatch
from tithe.types import IMAGE, TEXT, Selection, Tokens

COMMON: dict[str, Any] = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


# -- the authors' numbers ----------------------------------------------------------------------------------------------


class Rounds:
    """Tokens that are their own metric, between attention and MLP of blocks that do nothing else."""

    def __init__(self, rows: Tensor, cls: bool) -> None:
        self.seam = BlockSeam.__new__(BlockSeam)
        self.seam._reset()
        self.rows, self.cls, count = rows, cls, rows.shape[1]
        self.seam.width, self.seam.cols = count, torch.arange(count, dtype=torch.int32).expand(len(rows), 1, count)
        self.seam.alive = torch.ones(len(rows), 1, count, dtype=torch.bool)
        self.seam.place = torch.arange(count).expand(len(rows), count)

    def join(self, select: Any, together: bool) -> None:
        cols, alive = self.seam.cols, self.seam.alive
        kind = torch.where((cols == 0) & self.cls, TEXT, IMAGE)
        seen = torch.full((len(self.rows),), self.seam.width)
        state = BlockState(self.seam, self.rows)
        chosen: Selection = select(None, Tokens(cols, alive, seen, kind), self.rows)
        MergeApart(together=together).apply(state, chosen)
        self.rows = state.hidden


@pytest.mark.parametrize("tower", ["cls", "plain"])
def test_thresholds_of_a_batch_are_the_authors(tower: str) -> None:
    arrays, _ = vector("dymu")
    told: list[float] = []
    rounds = Rounds(arrays[f"{tower}_x"], tower == "cls")
    patches = 24
    for before, share in ((0, 6), (6, 10), (10, 13)):
        rounds.join(
            AlikeInBatch(tithe.budget.Budget(patches - 13), before / 13, share / 13, told.append), together=True
        )
    assert torch.allclose(torch.tensor(told).double(), arrays[f"{tower}_thresholds"], atol=2e-4)
    assert rounds.seam.alive.sum(-1)[:, 0].tolist() == arrays[f"{tower}_left"].tolist()
    assert torch.equal(rounds.seam.place, arrays[f"{tower}_place"])
    live = rounds.seam.alive[:, 0]
    assert torch.allclose(rounds.rows[live], arrays[f"{tower}_merged"][live], atol=1e-3)


def test_each_image_alone_under_the_thresholds_is_merged_as_by_the_authors() -> None:
    arrays, _ = vector("dymu")
    for n in range(3):
        rounds = Rounds(arrays["cls_x"][n : n + 1], cls=True)
        for threshold in arrays["cls_thresholds"].tolist():
            rounds.join(AlikeEnough(threshold), together=False)
        assert rounds.rows.shape[1] == int(arrays["cls_one_left"][n])
        assert torch.equal(rounds.seam.place[0], arrays["cls_one_place"][n])


def rotated(x: Tensor, by: Tensor, theta: float) -> Tensor:
    """``x [B, H, n, d]`` turned by ``by [B, 1, n]`` positions."""
    half = x.shape[-1] // 2
    angle = by[..., None].double() / theta ** (torch.arange(half, dtype=torch.float64) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


@pytest.mark.parametrize("last", [True, False])
def test_unmerged_attention_is_the_authors(last: bool) -> None:
    """Whatever place of its group a token is rotated to before: here its first or its last."""
    arrays, _ = vector("dymu")
    mapping, theta = arrays["vtu_mapping"].tolist(), float(arrays["vtu_theta"])
    n, unique = len(mapping), max(mapping) + 1
    places = [[p for p, token in enumerate(mapping) if token == u] for u in range(unique)]
    own = torch.tensor([held[-1 if last else 0] for held in places])
    q, k = (rotated(arrays[f"vtu_{name}"], own[None, None], theta) for name in "qk")
    leader = own[torch.tensor(mapping)][None]
    live = torch.ones(1, unique, dtype=torch.bool)
    stream = Stream(own[None].int(), live, 0, n)
    view = View(k, arrays["vtu_v"], own[None, None].int(), live[:, None])
    full = expanded(q, view, stream, leader, lambda x, by: rotated(x, by, theta), masked=True)
    assert full.mask is not None and full.mask[0, 0].sum() == n * (n + 1) // 2
    keys, values = (block.repeat_interleave(2, 1) for block in (full.keys, full.values))
    logits = (full.query @ keys.mT * float(arrays["vtu_scaling"])).masked_fill(~full.mask, -torch.inf)
    out = (logits.softmax(-1) @ values).transpose(1, 2)
    assert torch.allclose(full.queries.averaged(out, unique).flatten(2), arrays["vtu_out"], atol=1e-6)


# -- against plain maths ----------------------------------------------------------------------------------------------


Parts = list[tuple[list[int], Tensor]]
"""The tokens that a picture becomes: the places of each in the picture, and its features."""


def placed(vlm: Any, inputs: dict[str, Tensor], row: int, pictures: list[Parts]) -> tuple[Tensor, list[list[int]]]:
    """The embeddings of what is left of a row, and the positions that each stands at."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    words = deepcopy(vlm).double().get_input_embeddings()
    found, position, left = [], 0, iter(pictures)
    while position < len(ids):
        if ids[position] != tiny_vision.IMAGE:
            found.append(([position], words(ids[position])))
            position += 1
            continue
        parts = next(left)
        found += [([position + place for place in places], feature.double()) for places, feature in parts]
        position += sum(len(places) for places, _ in parts)
    found.sort(key=lambda part: part[0][0])
    return torch.stack([feature for _, feature in found]), [places for places, _ in found]


def laid_out(inputs: dict[str, Tensor], row: int, choose: Choose) -> tuple[Tensor, list[list[int]]]:
    """The same by the reference tower, for the tiny LLaVA of 16 tokens a picture."""
    connect = deepcopy(model()).double().model.multi_modal_projector
    owner = (inputs["input_ids"] == tiny_vision.IMAGE).nonzero()[::16, 0]
    pictures = []
    for image in inputs["pixel_values"][owner == row]:
        states, groups = merged_tower(model(), image, 2, choose)
        parts = zip(groups, connect(states), strict=True)
        pictures.append([([patch - 1 for patch in patches], feature) for patches, feature in parts if patches != [0]])
    return placed(model(), inputs, row, pictures)


def check_against_maths(choose: Choose, virtual: bool = True, **params: Any) -> list[int]:
    """Generate from a padded batch, and compare every step's logits with those of a full pass over what stands."""
    inputs = prompts([1, 2])
    out, run = generated("dymu", inputs, virtual=virtual, **params)
    left = []
    for row in range(2):
        embeds, stands = laid_out(inputs, row, choose)
        left.append(len(embeds))
        words = [deepcopy(model()).double().get_input_embeddings()(t) for t in out.sequences[row, -3:]]
        given = stands if virtual else [held[:1] for held in stands]
        end = 1 + max(max(held) for held in stands)
        every = virtual_logits(model(), torch.stack([*embeds, *words[:2]]), [*given, [end], [end + 1]])
        for step, logits in enumerate(out.logits):
            assert torch.allclose(logits[row].double(), every[len(embeds) - 1 + step], atol=2e-4)
    assert run.report().kv_live < run.report().kv_full
    return left


@pytest.mark.parametrize("virtual", [True, False])
def test_generation_against_maths(virtual: bool) -> None:
    left = check_against_maths(lambda block, edges, tokens: 5, virtual, keep=6)
    assert left == [6 + 8, 12 + 13]


@pytest.mark.parametrize("schedule", ["decreasing", "increasing"])
def test_schedules_against_maths(schedule: str) -> None:
    counts = [6, 0] if schedule == "decreasing" else [0, 6]
    check_against_maths(lambda block, edges, tokens: counts[block], keep=10, schedule=schedule)


def test_thresholds_against_maths() -> None:
    least = [0.6, 0.8]

    def above(block: int, edges: list[Any], tokens: int) -> int:
        return sum(likeness > least[block] for likeness, _, _ in edges)

    check_against_maths(above, thresholds=least)


def test_floor_and_ceiling_against_maths() -> None:
    check_against_maths(lambda block, edges, tokens: [7, 0][block], thresholds=[-1.0, -1.0], floor=9)
    check_against_maths(lambda block, edges, tokens: 3, thresholds=[None, None], ceiling=10)


# -- a second turn, beams, no cache, a crop ---------------------------------------------------------------------------


def test_a_second_turn_reads_virtual_tokens() -> None:
    inputs = prompts([1])
    more = torch.tensor([[20, 31, 45, 52]])
    width = inputs["input_ids"].shape[1]
    with tithe.on(model(), "dymu", keep=6), torch.no_grad():
        past = model()(**inputs, use_cache=True).past_key_values
        mask = torch.ones(1, width + 3, dtype=torch.long)
        turn = model()(input_ids=more[:, :3], attention_mask=mask, past_key_values=past, use_cache=True).logits
        mask = torch.ones(1, width + 4, dtype=torch.long)
        last = model()(input_ids=more[:, 3:], attention_mask=mask, past_key_values=past, use_cache=True).logits
        past.crop(-1)
        again = model()(input_ids=more[:, 3:], attention_mask=mask, past_key_values=past, use_cache=True).logits
    embeds, stands = laid_out(inputs, 0, lambda block, edges, tokens: 5)
    words = deepcopy(model()).double().get_input_embeddings()(more[0])
    every = virtual_logits(model(), torch.cat([embeds, words]), [*stands, *([width + n] for n in range(4))])
    assert torch.allclose(turn[0].double(), every[-4:-1], atol=2e-4)
    assert torch.allclose(last[0, -1].double(), every[-1], atol=2e-4) and torch.allclose(last, again, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_beams_against_maths(attention: str) -> None:
    vlm, inputs = deepcopy(model()), prompts([1, 2])
    vlm.set_attn_implementation(attention)
    with tithe.on(vlm, "dymu", keep=6), torch.no_grad():
        given = {**inputs, **COMMON, "num_beams": 3}
        out = vlm.generate(**given, return_dict_in_generate=True, output_scores=True)
    for row in range(2):
        embeds, stands = laid_out(inputs, row, lambda block, edges, tokens: 5)
        words = deepcopy(vlm).double().get_input_embeddings()(out.sequences[row, -3:])
        end = 1 + max(max(held) for held in stands)
        every = virtual_logits(vlm, torch.cat([embeds, words[:2]]), [*stands, [end], [end + 1]])[-3:].log_softmax(-1)
        told = every.gather(1, out.sequences[row, -3:, None]).mean()
        assert float(out.sequences_scores[row]) == pytest.approx(float(told), abs=1e-4)


# -- other hosts ------------------------------------------------------------------------------------------------------


def grouped(features: Tensor, newline: Tensor) -> Parts:
    """The tokens of a picture by equal features; newlines each alone."""
    found: dict[Any, list[int]] = {}
    for place, row in enumerate(features):
        found.setdefault(place if torch.equal(row, newline) else tuple(row.tolist()), []).append(place)
    return [(places, features[places[0]]) for places in found.values()]


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision"])
def test_one_token_of_each_group_goes_on(name: str) -> None:
    vlm = tiny_vision.VLMS[name].model()
    inputs = tiny_vision.prompt(name, vlm, [1, 2])
    pictures = {key: value for key, value in inputs.items() if "input_ids" not in key and "mask" not in key}
    given = {**inputs, **COMMON, "output_logits": True, "return_dict_in_generate": True}
    with tithe.on(vlm, "dymu", keep=6, level="kept") as run, torch.no_grad():
        whole = vlm.get_image_features(**pictures).pooler_output
        out = vlm.generate(**given)
    events = [event for event in run.trace.events if event.point == "encoder"]
    assert len(events) == len(whole) == 3
    parts = [grouped(rows, getattr(vlm.model, "image_newline", rows.new_zeros(rows.shape[-1]))) for rows in whole]
    assert [event.kept for event in events] == [(float(len(part)),) for part in parts]
    assert all(len(part) < len(rows) for part, rows in zip(parts, whole, strict=True))
    for row, mine in enumerate((parts[:1], parts[1:])):
        embeds, stands = placed(vlm, inputs, row, mine)
        words = deepcopy(vlm).double().get_input_embeddings()(out.sequences[row, -3:-1])
        end = 1 + max(max(held) for held in stands)
        every = virtual_logits(vlm, torch.cat([embeds, words]), [*stands, [end], [end + 1]])[-3:]
        assert torch.allclose(torch.stack(out.logits)[:, row].double(), every, atol=5e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "gemma3"])
def test_connectors_that_join_patches_are_refused(name: str) -> None:
    with pytest.raises(Refused, match=f"dymu acts between attention and MLP of a vision block; {name} declares no"):
        tithe.on(tiny_vision.VLMS[name].model(), "dymu")


def test_another_method_in_the_language_model_is_refused() -> None:
    with (
        tithe.on(model(), ["dymu", "snapkv"], keep=0.5),
        pytest.raises(Refused, match="virtual=False"),
        torch.no_grad(),
    ):
        model().generate(**prompts([1]), **COMMON)
    with tithe.on(model(), [tithe.method("dymu", virtual=False), "snapkv"], keep=0.5) as run, torch.no_grad():
        model().generate(**prompts([1]), **COMMON)
    assert {event.point for event in run.trace.events} == {"block", "encoder", "attention"}


# -- profiles ---------------------------------------------------------------------------------------------------------


def test_a_profile_keeps_its_mean_on_what_it_was_learnt_from(tmp_path: Any) -> None:
    batch = prompts([1] * 8)
    made = tithe.profile(model(), "dymu", probes=[Sample(batch)], keep=0.5)
    assert len(made.data["thresholds"]) == 2
    path = made.save(tmp_path / "dymu.json")
    with tithe.on(model(), "dymu", profile=path) as run, torch.no_grad():
        model().generate(**batch, **COMMON)
    left = [event.kept[0] for event in run.trace.events if event.point == "encoder"]
    assert sum(left) / len(left) == pytest.approx(8, abs=0.5) and len(set(left)) > 1
    with pytest.raises(BadInput, match=r"keep=0\.5"):
        tithe.method("dymu", profile=path, keep=0.3)
    with pytest.raises(Refused, match="another model"):
        tithe.on(tiny_vision.VLMS["llava_next"].model(), "dymu", profile=path)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="decreasing"):
        tithe.method("dymu", schedule="linear")
    with pytest.raises(BadInput, match="thresholds alone"):
        tithe.method("dymu", thresholds=[0.5, 0.5], keep=0.5)
    with pytest.raises(BadInput, match="floor"):
        tithe.method("dymu", floor=-1)
    with pytest.raises(BadInput, match="3 blocks; the model reads 2"):
        tithe.on(model(), "dymu", thresholds=[0.9, 0.9, 0.9])
    with pytest.raises(BadInput, match="Sample"):
        tithe.profile(model(), "dymu", probes=[])


# -- the trained model ------------------------------------------------------------------------------------------------


def test_learnt_thresholds_on_the_trained_model() -> None:
    vlm, processor, cases, inputs = asked()
    learn = [canvas.vqa_case(seed, "train", "digit-of") for seed in range(32)]
    text = [f"<image> {case.question}" for case in learn]
    images = [Image.fromarray(case.image) for case in learn]
    batch = processor(images=images, text=text, padding=True, return_tensors="pt")
    made = tithe.profile(vlm, "dymu", probes=[Sample(dict(batch))], keep=36)
    left, hits = {}, {}
    for virtual in (True, False):
        with tithe.on(vlm, "dymu", profile=made, virtual=virtual) as run, torch.no_grad():
            out = vlm.generate(**inputs, max_new_tokens=1, do_sample=False)
        told = processor.batch_decode(out[:, -1:], skip_special_tokens=True)
        hits[virtual] = sum(a.strip() == case.answer for a, case in zip(told, cases, strict=True)) / CASES
        left[virtual] = [event.kept[0] for event in run.trace.events if event.point == "encoder"]
    assert left[True] == left[False] and len(set(left[True])) > 4
    assert sum(left[True]) / CASES == pytest.approx(36, abs=2)
    assert min(hits.values()) >= right("random-patches", keep=36) + 0.1


def test_a_blank_picture_takes_fewer_tokens() -> None:
    vlm, _, _, inputs = asked()
    pixels = inputs["pixel_values"][:2].clone()
    pixels[1] = pixels[1].mean()
    given = {name: value[:2] for name, value in inputs.items()} | {"pixel_values": pixels}
    with tithe.on(vlm, "dymu", thresholds=[0.98, 0.83, 0.9, 0.9]) as run, torch.no_grad():
        vlm.generate(**given, max_new_tokens=1, do_sample=False)
    full, blank = (event.kept[0] for event in run.trace.events if event.point == "encoder")
    assert blank < full


def test_contract() -> None:
    contract("dymu")
    contract("dymu", virtual=False)
