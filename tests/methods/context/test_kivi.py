from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.context.contract import generate, model, padded
from methods.context.recorded import Recorded, vector
from seams.stores.packing import restored
from tiny import TEXT
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.check.host import SCENARIOS, Case
from tithe.check.method import alone_of
from tithe.errors import BadInput, Refused
from tithe.seams.stores import Dense, Packing, Paged, Quantised, View, codec

VECTOR, META = vector("kivi")
LIFE = META["life"]["params"]
SMALL = {"group": 4, "residual": 8}


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_and_numbers_of_the_authors(bits: int) -> None:
    keys = VECTOR["k"].unflatten(2, (3, 32)).transpose(3, 4).contiguous()
    values = VECTOR["v"].unflatten(3, (2, 16))
    for name, groups, back in (
        ("k", keys, lambda t: t.transpose(3, 4).flatten(2, 3)),
        ("v", values, lambda t: t.flatten(3)),
    ):
        codes, scale, low = codec.quantise(groups, bits)
        words = codec.pack(codes, bits).view(torch.int32)
        assert torch.equal(back(words), VECTOR[f"{name}{bits}_code"])
        assert torch.equal(back(codes * scale + low), VECTOR[f"{name}{bits}"])
        half = 2**-11 * (low.abs() + (2**bits - 1) * scale)
        packed = codec.decode(codec.encode(groups, bits), bits)
        assert ((packed - (codes * scale + low)).abs() <= half + 1e-6).all()


def naive(half: bool, prompt: int, steps: int) -> tuple[Tensor, list[list[int]]]:
    """Outputs ``[Hq, steps, d]`` and [keys packed, full, values packed, full] after each step, by the equations."""
    bits, group, residual = LIFE["k_bits"], LIFE["group_size"], LIFE["residual_length"]
    q, k, v = (VECTOR[f"life_{name}"][0].double() for name in "qkv")
    held_k, held_v, lengths, outputs = k.clone(), v.clone(), [], []
    done_k = done_v = 0

    def pack(seen: int) -> None:
        nonlocal done_k, done_v
        while seen - done_k >= residual:
            for start in range(done_k, done_k + residual, group):
                for head in range(k.shape[0]):
                    for channel in range(k.shape[2]):
                        block = restored(k[head, start : start + group, channel].tolist(), bits, half)
                        held_k[head, start : start + group, channel] = torch.tensor(block)
            done_k += residual
        while seen - done_v > residual:
            for head in range(v.shape[0]):
                held_v[head, done_v] = torch.tensor(restored(v[head, done_v].tolist(), bits, half))
            done_v += 1
        lengths.append([done_k, seen - done_k, done_v, seen - done_v])

    pack(prompt)
    for end in range(prompt + 1, prompt + steps + 1):
        rows = []
        for head in range(q.shape[0]):
            own = head * k.shape[0] // q.shape[0]
            weights = (held_k[own, :end] @ q[head, end - 1] / q.shape[-1] ** 0.5).softmax(0)
            rows.append(weights @ held_v[own, :end])
        outputs.append(torch.stack(rows))
        pack(end)
    return torch.stack(outputs, 1), lengths


def test_every_step_like_the_authors() -> None:
    """Their float32 scales by the equations are their recorded outputs; half-precision scales are ours."""
    prompt, steps = LIFE["prompt"], LIFE["decode"]
    exact, lengths = naive(False, prompt, steps)
    assert lengths == VECTOR["life_lengths"].tolist()
    torch.testing.assert_close(exact.float(), VECTOR["life_out"][0], atol=1e-5, rtol=0)

    recorded = Recorded(*(VECTOR[f"life_{name}"][0] for name in "qkv"))
    method = tithe.method("kivi", bits=2, group=LIFE["group_size"], residual=LIFE["residual_length"])
    with tithe.on(recorded.model, method):
        cache = recorded.play(prompt, steps)
    outputs = recorded.outputs()
    torch.testing.assert_close(outputs[0][:, :, -1], VECTOR["life_out_prefill"], atol=1e-5, rtol=0)
    mine = torch.cat(outputs[1:], 2)
    torch.testing.assert_close(mine[0].double(), naive(True, prompt, steps)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mine, VECTOR["life_out"], atol=5e-3, rtol=0)

    view = cache.layers[0].store.view()
    full = [
        int((mine == VECTOR[f"life_{name}"]).all(-1)[0, 0].sum())
        for mine, name in ((view.keys, "k"), (view.values, "v"))
    ]
    before_the_last = lengths[-2]
    assert full == [before_the_last[1] + 1, before_the_last[3] + 1]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_contract(name: str) -> None:
    """In double precision: a last digit of single precision may tip the rounding of a code or a scale."""
    assert check_method("kivi", TEXT[name]().double(), padded(), **SMALL)


@pytest.mark.parametrize("bits", [2, 4])
def test_memory_shrinks_and_grows_with_the_tokens(bits: int) -> None:
    inputs = padded(200, 0)
    with tithe.on(model(), "kivi", bits=bits) as run:
        model().generate(**inputs, max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=0)
    report = run.report()
    assert report.saving == "real"
    tokens, per_number = 239, bits / 8 + 4 / 32
    value = 16 * bits // 8 + 4
    settled = tokens - 1
    keys = settled // 32 * 32
    live = keys * 16 * per_number + (settled - 32) * value + ((tokens - keys) + 33) * 16 * 4
    assert report.kv_live == 3 * 2 * 2 * live
    assert report.kv_full == 3 * 2 * 2 * tokens * 2 * 16 * 4
    assert report.kv_live < {2: 0.36, 4: 0.42}[bits] * report.kv_full


def logits(host: Any, methods: list[Any], inputs: dict[str, Tensor], steps: int = 12, **params: Any) -> Tensor:
    with tithe.on(host, methods, **params), torch.no_grad():
        out = host.generate(
            **inputs,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    return torch.stack(out.logits, 1)


@pytest.mark.parametrize("first", ["snapkv", "adakv", "random"])
def test_after_an_eviction(first: str) -> None:
    """Fewer tokens in fewer bits: the layers hold what is left of the eviction, and rows are as they are alone."""
    host, inputs = TEXT["llama"]().double(), padded(80, 23)
    window = {} if first == "random" else {"window": 8}
    chain = [first, tithe.method("kivi", bits=2, **SMALL)]
    kept: list[Tensor] = []

    class Peek(Quantised):
        def __init__(self, view: View, *args: Any) -> None:
            kept.append(view.valid.expand(view.keys.shape[:3]).sum(-1))
            super().__init__(view, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tithe.seams.cache.Quantised", Peek)
        together = logits(host, chain, inputs, keep=0.5, **window)
    assert len(kept) == 3
    for counts in kept:
        assert all(wanted - 1 <= sum(heads) <= wanted for heads, wanted in zip(counts.tolist(), (80, 56), strict=True))
        assert (counts[:, 0] == counts[:, 1]).all() != (first == "adakv")
    only_evicted = logits(host, [first], inputs, keep=0.5, **window)
    assert not torch.equal(together, only_evicted)
    for row in range(2):
        alone = logits(host, chain, alone_of(inputs, row), keep=0.5, **window)
        torch.testing.assert_close(together[row], alone[0], atol=5e-5, rtol=0)


def test_evicting_what_is_packed() -> None:
    """The other order works too: the scores read the packed keys, and what is left is packed again."""
    inputs = padded(80, 23)
    with tithe.on(model(), [tithe.method("kivi", **SMALL), "snapkv"], keep=0.5, window=8) as run:
        model().generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
    for layer in run.layers_of_cache():
        assert isinstance(layer.store, Quantised)
        assert layer.store.view().valid.sum(-1).tolist() == [[41, 41], [29, 29]]


def test_with_evictions_at_every_step() -> None:
    inputs = padded(60, 13)
    with tithe.on(model(), [tithe.method("kivi", **SMALL), "h2o"], keep=20) as run:
        model().generate(**inputs, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0)
    for layer in run.layers_of_cache():
        assert isinstance(layer.store, Quantised)
        assert layer.store.view().valid.sum(-1).tolist() == [[20, 20], [20, 20]]
        assert layer.store.length < 20 / 0.7 + 8


def simulated(host: Any, ids: Tensor, prompt: int, bits: int) -> Tensor:
    """Logits ``[1, steps, V]`` after ``prompt``, over a plain cache packed by the equations before each step."""
    from transformers.cache_utils import DynamicCache

    group, residual = SMALL["group"], SMALL["residual"]
    cache, out = DynamicCache(config=host.config), []
    given: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        host(input_ids=ids[:, :prompt], past_key_values=cache)
        for at in range(prompt, ids.shape[1]):
            for index, layer in enumerate(cache.layers):
                old = given.get(index, (layer.keys[:, :, :0], layer.values[:, :, :0]))
                k, v = (
                    torch.cat([o, n[:, :, o.shape[2] :]], 2)
                    for o, n in zip(old, (layer.keys, layer.values), strict=True)
                )
                given[index] = k, v
                layer.keys, layer.values = k.clone(), v.clone()
                for head in range(k.shape[1]):
                    for start in range(0, at // residual * residual, group):
                        for channel in range(k.shape[3]):
                            block = restored(k[0, head, start : start + group, channel].tolist(), bits)
                            layer.keys[0, head, start : start + group, channel] = torch.tensor(block)
                    for t in range(max(0, at - residual)):
                        for start in range(0, k.shape[3], group):
                            block = restored(v[0, head, t, start : start + group].tolist(), bits)
                            layer.values[0, head, t, start : start + group] = torch.tensor(block)
            out.append(host(input_ids=ids[:, at : at + 1], past_key_values=cache).logits[:, 0])
    return torch.stack(out, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "olmo2"])
def test_hosts_give_what_a_packed_plain_cache_does(name: str, attention: str) -> None:
    host = TEXT[name]().double()
    host.set_attn_implementation(attention)
    ids = torch.randint(5, 90, (1, 50), generator=torch.Generator().manual_seed(1))
    wanted = simulated(host, ids, 37, 2)
    with tithe.on(host, "kivi", **SMALL), torch.no_grad():
        cache = host(input_ids=ids[:, :37]).past_key_values
        got = [host(input_ids=ids[:, at : at + 1], past_key_values=cache).logits[:, 0] for at in range(37, 50)]
    torch.testing.assert_close(torch.stack(got, 1), wanted, atol=1e-3, rtol=0)
    plain = host(input_ids=ids).logits[:, 37:]
    assert (plain - wanted).abs().max() > 0.05


def test_sliding_windows_see_their_window_only() -> None:
    """Far past its window a Mistral with 4-bit keys stays near itself, and holds at most two windows."""
    host = TEXT["mistral"]()
    ids = torch.randint(5, 90, (1, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = host(input_ids=ids).logits[:, 60:]
    gaps = []
    for bits in (2, 4):
        with tithe.on(host, "kivi", bits=bits, **SMALL), torch.no_grad():
            cache = host(input_ids=ids[:, :60]).past_key_values
            got = [host(input_ids=ids[:, at : at + 1], past_key_values=cache).logits[:, 0] for at in range(60, 150)]
        assert all(isinstance(layer.store, Quantised) and layer.store.length <= 2 * 24 + 8 for layer in cache.layers)
        gaps.append((torch.stack(got, 1) - plain).norm() / plain.norm())
    assert gaps[1] < 0.3 * gaps[0] < 0.3


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("first", ["random", "adakv"])
def test_every_way_of_calling(first: str, scenario: str) -> None:
    """While nothing is packed yet the store is the masked model's to the last digit; packed, it differs."""
    evict = tithe.method(first, keep=0.4, **({"window": 8} if first == "adakv" else {}))
    unpacked = Case(model(), [evict, tithe.method("kivi", residual=256)], 96, 0, 40)
    assert getattr(unpacked, scenario)() <= 1e-4
    packed = Case(model(), [evict, tithe.method("kivi", **SMALL)], 96, 0, 40)
    assert 1e-3 < getattr(packed, scenario)() < 20


def test_bfloat16_model_generates_from_packed_keys() -> None:
    host = TEXT["llama"]().to(torch.bfloat16)
    got = logits(host, ["kivi"], padded(60, 9), bits=4, **SMALL)
    plain = host.generate(
        **padded(60, 9), max_new_tokens=1, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    ).logits[0]
    assert torch.isfinite(got).all() and torch.equal(got[:, 0], plain)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"bits": 3}, "bits=3"),
        ({"group": 6, "bits": 2}, "group=6"),
        ({"group": 16, "residual": 40}, "residual=40"),
        ({"residual": 0}, "residual=0"),
    ],
)
def test_parameters_out_of_range(params: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tithe.method("kivi", **params)


def test_a_head_that_fills_no_bytes_is_refused() -> None:
    view = View(
        torch.randn(1, 1, 20, 6), torch.randn(1, 1, 20, 6), torch.arange(20)[None, None], torch.ones(1, 1, 20).bool()
    )
    with pytest.raises(Refused, match="head_dim=6"):
        Quantised(view, Packing(2, 8, 8))
    assert isinstance(Dense(*view), Dense) and Paged is not Quantised


def test_tokens_come_out_the_same_twice() -> None:
    first, events = generate("kivi", padded(), **SMALL)
    second, _ = generate("kivi", padded(), **SMALL)
    assert torch.equal(first, second)
    assert {event.saving for event in events} == {"real"} and len(events) == 3
