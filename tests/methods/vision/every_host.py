"""One story for every visual method and host: a batch of three rows over two turns, and each row of it alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tiny_vision
import torch
from masked_vision import ALONG
from tiny_vision import IMAGE, VIDEO, VLMS, clip_prompt, prompt
from torch import Tensor

import tithe
from tithe.types import Method

FIRST, SECOND = (2, 0, 1), (1, 1, 0)
COMMON: dict[str, Any] = {"max_new_tokens": 1, "min_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
CLIP_NAMES = ("pixel_values_videos", "video_grid_thw")


@cache
def made(name: str) -> Any:
    """The tiny model of a family."""
    one: Any = VLMS[name].model()
    if name in tiny_vision.CLIPS:
        one.config.video_token_id = VIDEO
    return one


@dataclass(frozen=True)
class Turn:
    """What one forward is given: a left-padded batch with ``rows[b]`` pictures, or ``clips[b]`` clips, in row b."""

    inputs: dict[str, Tensor]
    rows: tuple[int, ...]
    clips: tuple[int, ...]

    def alone(self, row: int, padded: bool = False) -> Turn:
        """One row, without its left padding if it is not to be ``padded``, and only its own pictures and clips."""
        start = 0 if padded else int(self.inputs["attention_mask"][row].argmax())
        found = {name: self.inputs[name][row : row + 1, start:] for name in ALONG if name in self.inputs}
        found |= _part(self.inputs, "pixel_values", "image_grid_thw", self.rows, row)
        found |= _part(self.inputs, *CLIP_NAMES, self.clips, row)
        return Turn(found, self.rows[row : row + 1], self.clips[row : row + 1])


def _part(inputs: dict[str, Tensor], pixels: str, grids: str, counts: tuple[int, ...], row: int) -> dict[str, Tensor]:
    """The pixels of one row, however its family lays them out."""
    if pixels not in inputs or not counts[row]:
        return {}
    first, last = sum(counts[:row]), sum(counts[: row + 1])
    if grids in inputs:
        sizes = inputs[grids].prod(-1)
        start, stop = int(sizes[:first].sum()), int(sizes[:last].sum())
        return {pixels: inputs[pixels][start:stop], grids: inputs[grids][first:last]}
    if pixels == "pixel_values" and inputs[pixels].dim() == 5 and "image_sizes" not in inputs:
        return {pixels: inputs[pixels][row : row + 1, : counts[row]]}
    found = {pixels: inputs[pixels][first:last]}
    if pixels == "pixel_values" and "image_sizes" in inputs:
        found["image_sizes"] = inputs["image_sizes"][first:last]
    if pixels == "pixel_values" and "batch_num_images" in inputs:
        found["batch_num_images"] = torch.tensor([counts[row]])
    return found


@cache
def pictures(name: str, rows: tuple[int, ...], seed: int = 0) -> Turn:
    """A turn with so many pictures in each row."""
    return Turn(prompt(name, made(name), list(rows), seed), rows, (0,) * len(rows))


@cache
def turn(name: str, kind: str) -> Turn:
    """A turn of one forward: words, a row of two ``pictures``, ``ragged`` rows, a ``clip``, two, or ``mixed`` ones."""
    if kind == "clip":
        return turn(name, "clips").alone(0)
    if kind in ("clips", "mixed"):
        mixed = kind == "mixed"
        return Turn(clip_prompt(name, made(name), 2, picture=mixed), (0, int(mixed)), (1, 1))
    return pictures(name, {"text": (0,), "pictures": (2,), "ragged": FIRST}[kind])


@cache
def plain(name: str, kind: str) -> Tensor:
    """Logits of the untouched model."""
    return forward(name, turn(name, kind))


def forward(name: str, turn: Turn) -> Tensor:
    """Logits ``[B, V]`` of the last token."""
    with torch.no_grad():
        return made(name)(**turn.inputs, use_cache=True).logits[:, -1]


def under(name: str, method: Method, kind: str) -> Tensor:
    """The same with a method attached."""
    with tithe.on(made(name), method):
        return forward(name, turn(name, kind))


@dataclass
class Told:
    """What a conversation gave: ``logits [B, V]`` of each forward, and by step what was kept and of how many."""

    logits: list[Tensor] = field(default_factory=list)
    counts: list[dict[Any, list[tuple[float, int]]]] = field(default_factory=list)


def positions(model: Any, ids: Tensor, mask: Tensor, grids: list[list[Tensor]]) -> Tensor:
    """Qwen's positions ``[3, B, T]`` of all columns so far, pictures ``grids`` by row among them."""
    if not any(grids):
        return (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    found = torch.cat([grid for row in grids for grid in row])
    return model.base_model.get_rope_index(ids, (ids == IMAGE).long(), image_grid_thw=found, attention_mask=mask)[0]


@torch.no_grad()
def talk(name: str, method: Method, turns: list[Turn]) -> Told:
    """Give ``turns`` on one cache, a word between them (or behind a single one)."""
    model, told, past = made(name), Told(), None
    ids = mask = torch.empty(len(turns[0].rows), 0, dtype=torch.long)
    grids: list[list[Tensor]] = [[] for _ in turns[0].rows]
    with tithe.on(model, method, level="history") as run:
        for number, turn in enumerate(turns):
            for row, mine in enumerate(grids):
                mine += [turn.alone(row).inputs["image_grid_thw"]] if turn.rows[row] and "qwen" in name else []
            # Qwen's own positions are those of one turn with pictures: later turns, and words alone, need them given.
            explicit = "qwen" in name and (number > 0 or not any(turns[0].rows + turns[0].clips))
            word = torch.full((len(ids), 1), 20 + number)
            words = {"input_ids": word, "attention_mask": torch.ones_like(word)}
            for inputs in (turn.inputs, words)[: 1 if 0 < number == len(turns) - 1 else 2]:
                before = ids.shape[1]
                ids, mask = (
                    torch.cat(both, 1) for both in ((ids, inputs["input_ids"]), (mask, inputs["attention_mask"]))
                )
                given = {**inputs, "attention_mask": mask}
                if explicit:
                    given["position_ids"] = positions(model, ids, mask, grids)[..., before:]
                if "token_type_ids" in turn.inputs:
                    given["token_type_ids"] = (ids == IMAGE).long()
                out = model(**given, past_key_values=past, use_cache=True)
                past = out.past_key_values
                told.logits.append(out.logits[:, -1])
            counts = defaultdict(list)
            for event in run.trace.history:
                counts[event.step, event.point, event.layer] += list(zip(event.kept, event.seen, strict=True))
            told.counts.append(dict(counts))
            run.trace.history.clear()
    return told


def generated(name: str, method: Method, turn: Turn) -> Tensor:
    """Logits ``[B, V]`` of the first new token, by ``generate``, which encodes pictures before it calls the model."""
    with tithe.on(made(name), method), torch.no_grad():
        out = made(name).generate(**turn.inputs, **COMMON, output_logits=True, return_dict_in_generate=True)
    assert out.sequences.shape[1] == turn.inputs["input_ids"].shape[1] + 1
    return out.logits[0]


def apart(together: Told, alone: list[Told]) -> float:
    """The largest gap between the logits of a batch and those of its rows; ``inf`` where they keep other counts."""
    for turn, counts in enumerate(together.counts):
        for step in {step for one in (together, *alone) for step in one.counts[turn]}:
            if counts.get(step, []) != [one for row in alone for one in row.counts[turn].get(step, [])]:
                return float("inf")
    pairs = [
        (logits[row], one.logits[at][0]) for at, logits in enumerate(together.logits) for row, one in enumerate(alone)
    ]
    return max(float((left - right).abs().max()) for left, right in pairs)


# -- image encoders ----------------------------------------------------------------------------------------------------


@cache
def encoder(name: str) -> Any:
    """The tiny encoder of a family."""
    return tiny_vision.VITS[name]()


PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def features(name: str, method: Method | None = None) -> Tensor:
    """Last hidden states ``[3, n, d]``."""
    if method is None:
        return encoder(name)(pixel_values=PIXELS).last_hidden_state
    with tithe.on(encoder(name), method):
        return encoder(name)(pixel_values=PIXELS).last_hidden_state


@torch.no_grad()
def seen(name: str, method: Method, image: int | None = None) -> tuple[Tensor, list[tuple[float, ...]]]:
    """Last hidden states of all images or of one, and what each step kept of each."""
    pixels = PIXELS if image is None else PIXELS[image : image + 1]
    with tithe.on(encoder(name), method, level="history") as run:
        states = encoder(name)(pixel_values=pixels).last_hidden_state
    return states, [event.kept for event in run.trace.history]
