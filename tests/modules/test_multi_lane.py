"""MULTI-LANE: lanes against whole attention in float64 and the authors' blocks, their isolation, copied ViT blocks."""

from __future__ import annotations

import math

import pytest
import torch
from naive import vector
from torch import Tensor, nn

from tithe.errors import BadInput
from tithe.modules import multi_lane as ours
from tithe.modules.blocks import Block, vit_blocks
from tithe.modules.multi_lane import MultiLane, summarise


def small(selectors: int = 3, layers: int = 2) -> MultiLane:
    torch.manual_seed(0)
    blocks = [Block(8, 2, 16) for _ in range(3)]
    model = MultiLane(blocks, nn.LayerNorm(8), torch.randn(8), (2, 1), selectors, prompts=2, layers=layers).double()
    with torch.no_grad():
        for lane in model.lanes:
            lane.selectors.normal_()
            lane.prompts.normal_()
    model.seen = 2
    return model


def heads_apart(block: Block, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one image, head by head."""
    size, mixed = queries.shape[-1] // block.heads, []
    for head in range(block.heads):
        part = slice(head * size, head * size + size)
        mixed.append((queries[:, part] @ keys[:, part].T / math.sqrt(size)).softmax(-1) @ values[:, part])
    return block.out(torch.cat(mixed, -1))


def naive(model: MultiLane, image: Tensor, task: int) -> Tensor:
    """One lane of one image ``[N, d]`` as the paper draws it: all of its tokens attend, then summaries are dropped."""
    lane, hidden = model.lanes[task], image
    tokens = torch.cat([model.start[None], lane.selectors])
    for layer, block in enumerate(model.blocks):
        own, patches = block.before(tokens), block.before(hidden)
        summaries = []
        for selector in own[1:]:
            mass = torch.exp(torch.stack([selector @ patch for patch in patches]) / math.sqrt(len(selector)))
            summaries.append((mass[:, None] * patches).sum(0) / mass.sum())
        read = torch.cat([own[:1], torch.stack(summaries)])
        key, value = block.key(read), block.value(read)
        if layer < model.layers:
            key, value = (torch.cat([p, t]) for p, t in zip(lane.prompts[layer], (key, value), strict=True))
        mixed = heads_apart(block, block.query(read), key, value)
        tokens = tokens + torch.cat([mixed[:1], own[1:]])
        tokens = tokens + block.mlp(block.between(tokens))
        normal = block.before(hidden)
        hidden = hidden + heads_apart(block, block.query(normal), block.key(normal), block.value(normal))
        hidden = hidden + block.mlp(block.between(hidden))
    return model.norm(tokens)[0]


@pytest.mark.parametrize("layers", [0, 2, 3])
def test_same_as_lane_by_lane(layers: int) -> None:
    model = small(layers=layers)
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    patches = model.frozen(hidden)
    got = model.lanes_of(patches, slice(0, 2))
    for task in range(2):
        for row in range(2):
            torch.testing.assert_close(got[task, row], naive(model, hidden[row], task), rtol=1e-10, atol=1e-10)
    expected = nn.functional.normalize(naive(model, hidden[1], 1), dim=-1)
    torch.testing.assert_close(model(patches)[1, 2:], model.lanes[1].head(expected), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(patches, task=1), model(patches)[:, 2:], rtol=1e-10, atol=1e-10)


def test_a_selector_picks_the_patches_it_is_like() -> None:
    patches = 20 * torch.eye(4)[None]
    got = summarise(torch.eye(4)[None, :2], patches)
    torch.testing.assert_close(got, patches[:, :2], rtol=1e-3, atol=1e-2)
    assert torch.equal(summarise(torch.zeros(1, 1, 4), patches), patches.mean(1, keepdim=True))


def test_what_is_learnt_later_leaves_earlier_lanes_alone() -> None:
    torch.manual_seed(0)
    model = MultiLane([Block(8, 2, 16) for _ in range(2)], nn.LayerNorm(8), torch.randn(8), (2, 2), layers=1)
    patches, first = model.frozen(torch.randn(3, 5, 8)), model.lanes[0]
    lane = model.next_task()
    before = model(patches)
    assert torch.equal(lane.selectors, first.selectors) and torch.equal(lane.prompts, first.prompts)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    frozen = [parameter.clone() for parameter in model.blocks.parameters()]
    model(patches, task=1).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(frozen, model.blocks.parameters(), strict=True))
    after = model(patches)
    assert torch.equal(after[:, :2], before[:, :2]) and not torch.equal(lane.selectors, first.selectors)
    assert model.classes() == [range(2), range(2, 4)]
    with pytest.raises(BadInput, match="All 2 tasks are open"):
        model.next_task()


def test_same_numbers_as_the_authors() -> None:
    saved, meta = vector("multi-lane")
    blocks, norm = [Block(16, meta["heads"], 32) for _ in range(3)], nn.LayerNorm(16, 1e-6)
    for place, block in enumerate(blocks):
        names = {
            "before": "norm1", "out": "attn.proj", "between": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"
        }  # fmt: skip
        state = {
            f"{mine}.{kind}": saved[f"w.{place}.{theirs}.{kind}"]
            for mine, theirs in names.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            parts = saved[f"w.{place}.attn.qkv.{kind}"].chunk(3)
            state |= {f"{name}.{kind}": part for name, part in zip(("query", "key", "value"), parts, strict=True)}
        block.load_state_dict(state)
    norm.load_state_dict({kind: saved[f"w.norm.{kind}"] for kind in ("weight", "bias")})
    model = MultiLane(blocks, norm, saved["start"], (1, 1), selectors=3, prompts=4, layers=2)
    # [layer, 2, task, K, heads, d] -> [task, layer, 2, K, width]
    prompts, d_prompts = (saved[name].permute(2, 0, 1, 3, 4, 5).flatten(4) for name in ("prompts", "d_prompts"))
    with torch.no_grad():
        for lane, selectors, prompt in zip(model.lanes, saved["selectors"], prompts, strict=True):
            lane.selectors.copy_(selectors)
            lane.prompts.copy_(prompt)
    out = model.lanes_of(model.frozen(saved["x"]), slice(0, 2))
    out.backward(saved["d_out"])
    torch.testing.assert_close(out, saved["out"], rtol=1e-4, atol=1e-4)
    for task, lane in enumerate(model.lanes):
        torch.testing.assert_close(lane.prompts.grad, d_prompts[task], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(lane.selectors.grad, saved["d_selectors"][task], rtol=1e-3, atol=1e-4)


def test_blocks_of_a_trained_vit_are_copied() -> None:
    from tithe import zoo

    vit = zoo.load("vit")[0].vit.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        hidden = expected = vit.embeddings(torch.randn(2, 3, 48, 48))
        for layer, block in zip(vit.layers, vit_blocks(vit), strict=True):
            expected, hidden = layer(expected), block(hidden)
            assert not any(parameter.requires_grad for parameter in block.parameters())
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadInput, match="layers=5 with prompts of 1"):
        MultiLane([Block(8, 2, 16)], nn.LayerNorm(8), torch.zeros(8), (2,))


def test_card() -> None:
    card = ours.CARD
    assert (card.slug, card.arxiv, card.year) == ("multi-lane", "2405.15633", 2024)
    assert card.code == "tdemin16/multi-lane" and card.family == "vision" and card.hosts == ()
