"""Prompts shortened before the model: positions, image features, and what later tokens count from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_vision import TOLERANCE, drawn_prompt, dropped, encode
from tiny import TEXT, VOCAB
from tiny_vision import IMAGE, VLMS, prompt
from torch import Tensor

import tithe
from tithe.actions import Shorten
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.seams.inputs import arguments
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step


@card(
    slug="renumbers",
    title="A test",
    year=2024,
    family="context",
    hosts=("llm",),
    fidelity="definition",
    saving="real",
    mechanism="A test.",
)
def renumbers(keep: float = 0.5) -> Step:
    """Shorten a prompt of text to what the last token attends to."""
    return Step(
        Site("input"),
        lambda evidence, tokens: evidence.at(1).probs(-1).mean((1, 2, 3))[:, None],
        TopK(Budget(keep, recent=1)),
        Shorten(renumber=True),
        needs=(Need("queries", 1, window=1),),
    )


@pytest.mark.parametrize("route", ["forward", "generate"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_renumbered_prompt_is_the_short_prompt(name: str, route: str) -> None:
    """Each row gives what its kept tokens alone give, at positions 0, 1, 2, ...; so do the tokens after it."""
    model = TEXT[name]()
    ids = torch.randint(5, VOCAB, (2, 30), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    token = torch.tensor([[7], [9]])
    grown = torch.cat([mask, torch.ones_like(token)], 1)
    with torch.no_grad(), tithe.on(model, renumbers(), level="history") as run:
        if route == "forward":
            out = model(input_ids=ids, attention_mask=mask, use_cache=True)
            last = model(input_ids=token, attention_mask=grown, past_key_values=out.past_key_values).logits[:, -1]
            first = out.logits[:, -1]
        else:
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
            first, last, token = out.logits[0], out.logits[1], out.sequences[:, 30:31]
    lost = dropped(run, ids, 0)
    for row in range(2):
        kept = ids[row, mask[row].bool() & ~lost[row]]
        with torch.no_grad():
            want = model(input_ids=torch.cat([kept, token[row]])[None]).logits[0]
        assert len(kept) == int(mask[row].sum()) // 2
        assert float((first[row] - want[-2]).abs().max()) <= 1e-4
        assert float((last[row] - want[-1]).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("route", ["forward", "generate"])
def test_image_features_follow_their_columns(name: str, route: str) -> None:
    """A shortened prompt with images is the short prompt with the features of the image tokens that stayed."""
    model: Any = VLMS[name].model()
    inputs = prompt(name, model, [2])
    ids = inputs["input_ids"]
    token = torch.tensor([[17]])
    with torch.no_grad(), tithe.on(model, drawn_prompt(keep=0.5, renumber=True), level="history") as run:
        if route == "forward":
            out = model(**inputs, use_cache=True)
            grown = torch.ones(1, ids.shape[1] + 1, dtype=torch.long)
            last = model(input_ids=token, attention_mask=grown, past_key_values=out.past_key_values).logits[:, -1]
            first = out.logits[:, -1]
        else:
            out = model.generate(
                **inputs,
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
                suppress_tokens=[IMAGE],
            )
            first, last, token = out.logits[0], out.logits[1], out.sequences[:, ids.shape[1] : ids.shape[1] + 1]
    stays = ~dropped(run, ids, 0)[0]
    images = encode(model, inputs)
    output = type(images.output)()
    levels = [level[stays[ids[0] == IMAGE]] for level in images.rows[0]]
    output.pooler_output = levels[0][None] if isinstance(images.output.pooler_output, Tensor) else [levels[0]]
    if len(levels) > 1:
        output.deepstack_features = [[level] for level in levels[1:]]
    short = torch.cat([ids[:, stays], token], 1)
    with torch.no_grad():
        want = model(
            input_ids=short,
            attention_mask=torch.ones_like(short),
            position_ids=torch.arange(short.shape[1])[None],
            mm_encoder_outputs={"image": output},
        ).logits[0]
    assert 0 < len(levels[0]) < int((ids == IMAGE).sum())
    assert float((first[0] - want[-2]).abs().max()) <= TOLERANCE
    assert float((last[0] - want[-1]).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("width", [20, 30])
def test_renumbering_is_refused_beyond_a_sliding_window(width: int) -> None:
    """Its window of 24 is counted in original columns: at the prompt, or as soon as the answer reaches it."""
    model = TEXT["mistral"]()
    ids = torch.randint(5, VOCAB, (1, width), generator=torch.Generator().manual_seed(4))
    how: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 4, "min_new_tokens": 4}
    with torch.no_grad(), tithe.on(model, renumbers()):
        if width == 20:
            model.generate(ids, **how)
        with pytest.raises(tithe.Refused, match="sliding window of 24"):
            model.generate(ids, **{**how, "max_new_tokens": 8, "min_new_tokens": 8})


def test_only_named_arguments_are_passed_on() -> None:
    def encode_(pixels: Any, sizes: Any = None, **kwargs: Any) -> None: ...

    assert arguments(encode_, {"pixels": 1, "ids": 2, "kwargs_": 3}) == {"pixels": 1}
