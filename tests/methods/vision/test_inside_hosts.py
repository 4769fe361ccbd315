"""Methods inside the language model on every family: padded batches, several images, second turns with new ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from masked_vision import TOLERANCE, talk
from tiny_vision import VLMS, prompt

import tithe
from tithe.check.method import alone_of

ONE_STAGE: dict[str, dict[str, Any]] = {
    "pyramiddrop": {"keep": (0.4,), "layer": (2,)},
    "transprune": {"keep": (0.4,), "layer": (1,), "observed": (0, 1)},
    "adatoken-3d": {"coverage": 0.4, "layer": (1,)},
    "sparsevlm": {"keep": (0.4,), "layer": (1,), "recycle": 0.0},
}


@cache
def made(name: str) -> Any:
    return VLMS[name].model()


@pytest.mark.parametrize("slug", ONE_STAGE)
@pytest.mark.parametrize("name", VLMS)
def test_what_is_dropped_before_a_layer_is_as_if_hidden_from_there(name: str, slug: str) -> None:
    method = tithe.method(slug, **ONE_STAGE[slug])
    assert talk(name, made(name), method, [[1, 2], [1, 0]], first_layer=2) < 5 * TOLERANCE


@pytest.mark.parametrize(
    ("slug", "given"),
    [("sparsevlm", {"keep": (0.3,), "layer": (1,)}), ("lvlm-csp", {"keep": (0.25, 0.2), "layer": (1, 2, 2)})],
)
@pytest.mark.parametrize("name", VLMS)
def test_tokens_that_were_merged_or_set_aside_go_with_any_family(name: str, slug: str, given: dict[str, Any]) -> None:
    """More dead columns at the left of a batch change nothing, and a second turn reads what the first left behind."""
    one, inputs = made(name), prompt(name, made(name), [2, 1])
    along = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    wide = {key: torch.nn.functional.pad(value, (5, 0)) if key in along else value for key, value in inputs.items()}

    def turns(first: dict[str, Any]) -> torch.Tensor:
        with tithe.on(one, slug, **given) as run, torch.no_grad():
            common = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
            kept = {"output_logits": True, "return_dict_in_generate": True, "suppress_tokens": [5, 6]}
            out = one.generate(**first, **common, **kept)
            assert any(sum(event.kept) < sum(event.seen) for event in run.trace.events)
            more = torch.cat([out.sequences, torch.full((2, 4), 11)], 1)
            mask = torch.nn.functional.pad(first["attention_mask"], (0, 6), value=1)
            rest = {key: torch.nn.functional.pad(first[key], (0, 6)) for key in along[2:] if key in first}
            again = one.generate(
                input_ids=more, attention_mask=mask, past_key_values=out.past_key_values, **rest, **common, **kept
            )
        return torch.stack([*out.logits, *again.logits], 1)

    first, second = turns(inputs), turns(wide)
    assert bool(torch.isfinite(first).all()) and float((first - second).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "slugs",
    [
        ("visionzip", "transprune"),
        ("sparsevlm", "snapkv"),
        ("fastv", "lvlm-csp"),
        ("lvlm-csp", "fastv"),
        ("pyramiddrop", "kivi"),
    ],
)
def test_composed_a_row_of_a_batch_gives_what_it_gives_alone(slugs: tuple[str, str]) -> None:
    one, inputs = made("llava"), prompt("llava", made("llava"), [1, 1])
    common = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    kept = {"output_logits": True, "return_dict_in_generate": True}

    def told(given: dict[str, Any]) -> torch.Tensor:
        with tithe.on(one, list(slugs)) as run, torch.no_grad():
            out = one.generate(**given, **common, **kept)
        fired = {event.method for event in run.trace.events}
        assert fired >= set(slugs)
        return torch.stack(out.logits, 1)

    both = told(inputs)
    for row in range(2):
        alone = alone_of(inputs, row)
        assert float((both[row] - told(alone)[0]).abs().max()) < 1e-4
