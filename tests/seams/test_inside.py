"""Inside the language model: attention looked up ahead, transitions, merged tokens, and tokens set aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TEXT, VOCAB
from torch import Tensor
from transformers import PreTrainedModel

import tithe
from tithe.actions import Drop
from tithe.actions.aside import Scatter, SetAside
from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import Refused
from tithe.scores.instructed import ALL
from tithe.selections.top_k import TopK
from tithe.types import Need, Selection, Site, Step, Tokens

ABOUT: dict[str, Any] = {
    "title": "A test",
    "year": 2024,
    "family": "context",
    "hosts": ("llm",),
    "fidelity": "definition",
    "saving": "real",
    "mechanism": "A test.",
}


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma3", "phi3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return TEXT[request.param]()


def inputs_of(padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(5, VOCAB, (2, 30), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def flat(evidence: Any, tokens: Tokens) -> Tensor:
    return torch.zeros(tokens.cols.shape)


def everything(score: Any, tokens: Tokens, features: Any = None) -> Selection:
    return Selection(tokens.valid, tokens.cols)


def step(select: Any, action: Any, layer: int, score: Any = flat, **rest: Any) -> Step:
    return Step(Site("layer", layer=layer), score, select, action, **rest)


@card(slug="looks", **ABOUT)
def looks(layer: int = 1, found: tuple[Any, ...] = ()) -> tuple[Step, ...]:
    """Hold what a layer shows before it runs, and what it showed, read from behind it."""
    before, after = found

    def ahead(evidence: Any, tokens: Tokens) -> Tensor:
        before.append((evidence.here.probs(), evidence.here.view.cols, evidence.features))
        return flat(evidence, tokens)

    def behind(evidence: Any, tokens: Tokens) -> Tensor:
        part = evidence.at(layer)
        after.append((part.probs(), part.view.cols, part.passage))
        return flat(evidence, tokens)

    both = Need("hidden", layer), Need("transitions", layer)
    return (
        step(everything, Drop(), layer, ahead, needs=(Need("queries", window=ALL),)),
        step(everything, Drop(), layer + 1, behind, needs=(Need("queries", layer, window=ALL), *both)),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_a_layer_would_show_is_what_it_shows(model: PreTrainedModel, padded: bool, attention: str) -> None:
    """In the first turn and in a second one, where the layer holds keys already; nothing else is changed by looking."""
    model.set_attn_implementation(attention)
    inputs, found = inputs_of(padded), ([], [])
    more = torch.randint(5, VOCAB, (2, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)

    with torch.no_grad():
        with tithe.on(model, looks(found=found)) as run:
            with run.prefill():
                out = model(**inputs, use_cache=True)
            got = [out.logits[:, -1]]
            with run.prefill():
                out = model(input_ids=more, attention_mask=mask, past_key_values=out.past_key_values)
            got.append(out.logits[:, -1])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        first = model(**inputs, position_ids=positions[:, :30], use_cache=True)
        second = model(
            input_ids=more, attention_mask=mask, position_ids=positions[:, 30:], past_key_values=first.past_key_values
        )
    for mine, own in zip(got, (first.logits[:, -1], second.logits[:, -1]), strict=True):
        assert float((mine - own).abs().max()) < 1e-4
    before, after = found
    assert len(before) == len(after) == 2
    for (ahead, cols, features), (shown, held, passage) in zip(before, after, strict=True):
        assert torch.equal(cols, held) and torch.allclose(ahead, shown, atol=1e-6)
        assert torch.equal(features[passage.valid], passage.entering[passage.valid])


def test_transitions_are_those_of_the_modules(model: PreTrainedModel) -> None:
    """Norms and cosines of what attention and MLP were given and gave, taken by hooks of our own."""
    inputs, found, seen = inputs_of(False), ([], []), {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen[name] = (args[0] if args else kwargs["hidden_states"], output[0] if name == "self_attn" else output)

        return hook

    layer = model.model.layers[1]
    handles = [getattr(layer, n).register_forward_hook(note(n), with_kwargs=True) for n in ("self_attn", "mlp")]
    with torch.no_grad(), tithe.on(model, looks(found=found)):
        model(**inputs)
    for handle in handles:
        handle.remove()
    ((_, _, passage),) = found[1]
    for ours, theirs in (("attention", "self_attn"), ("mlp", "mlp")):
        given, gave = (part.double() for part in seen[theirs])
        change = passage.changes[ours]
        dot = (given * gave).sum(-1) / (given.norm(dim=-1) * gave.norm(dim=-1))
        for mine, wanted in (
            (change.before, given.norm(dim=-1)),
            (change.after, gave.norm(dim=-1)),
            (change.cosine, dot),
        ):
            assert torch.allclose(mine.double(), wanted, rtol=1e-4, atol=1e-5)
    assert passage.cols.tolist() == [list(range(30))] * 2


def entered(model: PreTrainedModel, layer: int, method: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """What enters a layer under ``method``, and the run."""
    seen: list[Tensor] = []
    with torch.no_grad(), tithe.on(model, method, level="kept") as run:
        handle = model.model.layers[layer].input_layernorm.register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        out = model(**inputs, use_cache=True)
        handle.remove()
    run.cache = out.past_key_values
    return seen[-1], run


def fold(weights: bool, proportional: bool = False) -> Any:
    """Columns 11 and 12 join 10, in the shares .2, .3 and .5, or as their mean."""

    @card(slug="folds", **ABOUT)
    def folds() -> Step:
        def select(score: Any, tokens: Tokens, features: Tensor) -> Selection:
            goes = (tokens.cols == 11) | (tokens.cols == 12)
            slot = (tokens.cols == 10).int().argmax(-1, keepdim=True)
            share = torch.where(tokens.cols == 11, 0.2, torch.where(tokens.cols == 12, 0.3, 1.0))
            share = torch.where(tokens.cols == 10, 0.5, share)
            dest = torch.where(goes, slot, -1)
            return Selection(tokens.valid & ~goes, tokens.cols, dest, share if weights else None)

        return step(select, Merge(proportional), 2, compare=lambda evidence, tokens: evidence.features)

    return folds()


@pytest.mark.parametrize("weights", [False, True])
def test_merged_tokens_stand_in_their_destination(model: PreTrainedModel, weights: bool) -> None:
    inputs = inputs_of(True)
    share = (0.5, 0.2, 0.3) if weights else (1 / 3, 1 / 3, 1 / 3)
    plain, _ = entered(model, 2, step_free(), inputs)
    got, run = entered(model, 2, fold(weights), inputs)
    for row in range(2):
        own = plain[row, 10:13].double()
        want = own[0] * share[0] + own[1] * share[1] + own[2] * share[2]
        assert torch.allclose(got[row, 10].double(), want, atol=1e-5)
        assert torch.equal(got[row, 11:], plain[row, 13:]) and torch.equal(got[row, 7:10], plain[row, 7:10])
    cols = [layer.store.view().cols[0, 0].tolist() for layer in run.cache.layers[1:3]]
    assert cols == [list(range(30)), [c for c in range(30) if c not in (11, 12)]]


def step_free() -> Any:
    """A method that drops nothing."""

    @card(slug="drops-nothing", **ABOUT)
    def drops_nothing() -> Step:
        return step(everything, Drop(), 1)

    return drops_nothing()


def test_a_text_layer_cannot_weigh_tokens_by_size(model: PreTrainedModel) -> None:
    with pytest.raises(Refused, match="weigh"):
        entered(model, 2, fold(False, proportional=True), inputs_of(False))


@card(slug="waits", **ABOUT)
def waits(lose: int = -1, below: bool = False, twice: bool = False) -> tuple[Step, ...]:
    """Set odd columns aside before layer 1, each for the even one before it, and bring them back before layer 2.

    Column ``lose`` is dropped there first.
    """

    def aside(score: Any, tokens: Tokens) -> Selection:
        odd = (tokens.cols % 2 == 1) & tokens.valid
        place = torch.arange(odd.shape[-1]).expand_as(odd)
        leads = tokens.valid & ~odd
        dest = torch.where(leads, place, -1).cummax(-1).values
        return Selection(leads, tokens.cols, torch.where(odd, dest, -1))

    def one(score: Any, tokens: Tokens) -> Selection:
        return Selection(tokens.valid & (tokens.cols != lose), tokens.cols)

    return (
        step(aside, SetAside(), 1),
        *((step(aside, SetAside(), 2),) if twice else ()),
        step(one, Drop(below), 2),
        Step(Site("layer", layer=2), action=Scatter()),
    )


@pytest.mark.parametrize("below", [False, True])
def test_tokens_wait_and_come_back_without_those_whose_leader_went(model: PreTrainedModel, below: bool) -> None:
    """Layer 1 holds the leaders alone, for good; evicting below layer 2 spares those who wait."""
    got, run = entered(model, 2, waits(lose=16, below=below), inputs_of(True))
    assert got.shape[1] == 28
    for row, first in enumerate((0, 7)):
        live = list(range(first, 30))
        orphans = (7,) if row else ()
        wanted = (
            [c for c in live if not below or c not in (16, *orphans)],
            [c for c in live if c % 2 == 0 and not (below and c == 16)],
            [c for c in live if c not in (16, 17, *orphans)],
        )
        for layer, cols in zip(run.cache.layers, wanted, strict=True):
            view = layer.store.view()
            assert view.cols[row, 0][view.valid[row, 0]].tolist() == cols


def test_the_gain_is_that_of_the_leader(model: PreTrainedModel) -> None:
    inputs = inputs_of(False)
    start, _ = entered(model, 1, step_free(), inputs)
    got, _ = entered(model, 2, waits(), inputs)
    gain = got[:, 0::2] - start[:, 0::2]
    assert torch.allclose(got[:, 1::2], start[:, 1::2] + gain, atol=1e-5)
    assert float(gain.abs().max()) > 0.1


def test_two_methods_cannot_set_aside_at_once(model: PreTrainedModel) -> None:
    with pytest.raises(Refused, match="one at a time"):
        entered(model, 2, waits(twice=True), inputs_of(False))


def test_decoding_reads_the_cache_that_each_layer_has(model: PreTrainedModel) -> None:
    """Generation goes on over layers that hold different tokens, and a padded batch gives what its rows give alone."""
    inputs = inputs_of(True)
    common = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), tithe.on(model, even()):
        both = model.generate(**inputs, **common, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), tithe.on(model, even()):
        alone = {name: value[1:, 7:] for name, value in inputs.items()}
        one = model.generate(**alone, **common, output_logits=True, return_dict_in_generate=True)
    gap = torch.stack(both.logits, 1)[1] - torch.stack(one.logits, 1)[0]
    assert float(gap.abs().max()) < 1e-4


def even() -> Any:
    """Every third live token leads; nothing depends on the number of dead columns."""

    @card(slug="leads", **ABOUT)
    def leads() -> tuple[Step, ...]:
        def aside(score: Any, tokens: Tokens) -> Selection:
            rank = tokens.valid.cumsum(-1) - 1
            keep = tokens.valid & (rank % 3 == 0)
            place = torch.arange(keep.shape[-1]).expand_as(keep)
            dest = torch.where(keep, place, -1).cummax(-1).values
            return Selection(keep, tokens.cols, torch.where(tokens.valid & ~keep, dest, -1))

        return (
            step(aside, SetAside(), 1),
            Step(Site("layer", layer=2), action=Scatter()),
            step(TopK(Budget(0.5, recent=1)), Drop(), 2, lambda e, t: torch.cos((t.valid.cumsum(-1) * 7.7).float())),
        )

    return leads()
