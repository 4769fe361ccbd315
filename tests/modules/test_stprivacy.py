"""STPrivacy: tubelets, the masked block against attention over the kept tokens, what is published, the adversary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tithe.errors import BadInput
from tithe.modules import stprivacy as ours
from tithe.modules.stprivacy import (
    MaskedBlock,
    Recogniser,
    Sparsifier,
    STPrivacy,
    adversarial_loss,
    ratio_loss,
    to_tubelets,
)


def test_tubelets_are_pieces_of_the_clip() -> None:
    clip = torch.randn(2, 3, 4, 6, 8)
    got = to_tubelets(clip, (2, 3, 4))
    assert got.shape == (2, 8, 72)
    place = 1 * 4 + 1 * 2 + 0  # second frames, lower rows, left columns
    assert torch.equal(got[1, place], clip[1, :, 2:, 3:, :4].reshape(-1))
    with pytest.raises(BadInput, match=r"size=\(3, 3, 4\)"):
        to_tubelets(clip, (3, 3, 4))


@torch.no_grad()
def one_by_one(block: MaskedBlock, tokens: Tensor, kept: list[bool]) -> Tensor:
    """The block on one row, token by token, over the kept tokens and itself."""
    normal, out = block.before(tokens), []
    q, k, v = block.qkv(normal).chunk(3, -1)
    size = q.shape[-1] // block.heads
    for token in range(len(tokens)):
        seen = [other for other in range(len(tokens)) if kept[other] or other == token]
        parts = []
        for head in range(block.heads):
            part = slice(head * size, head * size + size)
            logits = [float(q[token, part] @ k[other, part]) / math.sqrt(size) for other in seen]
            mass = [math.exp(value) for value in logits]
            parts.append(sum(m / sum(mass) * v[other, part] for m, other in zip(mass, seen, strict=True)))
        out.append(torch.cat(parts))
    tokens = tokens + block.out(torch.stack(out))
    return tokens + block.mlp(block.between(tokens))


def test_nobody_reads_what_is_abandoned() -> None:
    torch.manual_seed(0)
    block, tokens = MaskedBlock(8, 2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    kept = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=torch.float64)
    got = block(tokens, kept)
    for row in range(2):
        expected = one_by_one(block, tokens[row], kept[row].bool().tolist())
        torch.testing.assert_close(got[row], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block(tokens, torch.ones(2, 5, dtype=torch.float64)), block(tokens))


def test_training_and_use_agree_on_the_tokens_kept() -> None:
    torch.manual_seed(0)
    model = STPrivacy(pixels=6, tokens=10, width=8, heads=2, keep=0.4).double()
    tubelets = torch.randn(3, 10, 6, dtype=torch.float64)
    published, counted = model.eval()(tubelets)
    assert published.shape == (3, 4, 8) and bool((counted == 1).all())
    tokens = model.embed(tubelets) + model.place
    chosen = model.choose(tokens)
    logits = model.sparsifier.logits(model.look[0](tokens))
    odds = (logits[..., 0] - logits[..., 1]).argsort(1, descending=True)[:, :4].sort(1).values
    assert torch.equal(chosen, odds)
    mask = torch.zeros(3, 10, dtype=torch.float64).scatter(1, chosen, 1.0)
    whole = model.anonymise[0](tokens, mask).take_along_dim(chosen[..., None], 1)
    torch.testing.assert_close(published, whole, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        everything = tubelets.clone()
        everything.scatter_(1, chosen[..., None].expand(-1, -1, 6), 0.0)
    assert not torch.equal(model(everything)[0], published)


def test_abandoned_tubelets_are_not_in_what_is_published() -> None:
    torch.manual_seed(0)
    model = STPrivacy(pixels=6, tokens=10, width=8, heads=2, keep=0.4).eval()
    fixed = torch.arange(0, 8, 2)[None]
    model.choose = lambda tokens: fixed.expand(len(tokens), -1)  # type: ignore[method-assign]
    tubelets = torch.randn(1, 10, 6)
    moved = tubelets.clone()
    moved[:, 1::2] += 5
    assert torch.equal(model(tubelets)[0], model(moved)[0])
    moved[:, 2] += 5
    assert not torch.equal(model(tubelets)[0], model(moved)[0])


def test_the_choice_is_drawn_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    sparsifier, tokens = Sparsifier(8), torch.randn(4, 200, 8)
    kept = sparsifier.draw(tokens)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    share = sparsifier.logits(tokens).softmax(-1)[..., 0].mean()
    assert kept.mean().item() == pytest.approx(share.item(), abs=0.06)
    assert ratio_loss(kept, 0.3).item() == pytest.approx(((kept.mean(1) - 0.3) ** 2).mean().item())
    ratio_loss(kept, 0.0).backward()
    assert sparsifier.second[2].bias.grad[0] > 0 > sparsifier.second[2].bias.grad[1]


def test_the_adversary_pushes_towards_not_knowing() -> None:
    torch.manual_seed(0)
    action, spy = Recogniser(8, 3, heads=2), Recogniser(8, 2, heads=2)
    with torch.no_grad():
        spy.head.weight.mul_(6)
    published, kept = torch.randn(16, 4, 8, requires_grad=True), torch.ones(16, 4)
    actions, private = torch.randint(3, (16,)), torch.randint(2, (16,))

    def certainty() -> float:
        said = spy(published, kept).log_softmax(-1)
        return (said.exp() * said).sum(-1).mean().item()

    adversarial_loss(published, kept, action, spy, actions, private, 0.0).backward()
    alone = published.grad.clone()
    own = torch.autograd.grad(nn.functional.cross_entropy(action(published, kept), actions), published)[0]
    torch.testing.assert_close(alone, own)
    learnt = [parameter.grad.clone() for parameter in spy.parameters()]
    spy.zero_grad()
    published.grad = None
    adversarial_loss(published, kept, action, spy, actions, private, 3.0).backward()
    for parameter, expected in zip(spy.parameters(), learnt, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    before = certainty()
    with torch.no_grad():
        published -= 5 * (published.grad - alone)
    assert certainty() < before - 0.01


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadInput, match="keep=0"):
        STPrivacy(6, 10, 8, heads=2, keep=0)
    with pytest.raises(BadInput, match="width=9"):
        STPrivacy(6, 10, 9, heads=2)


def test_card() -> None:
    card = ours.CARD
    assert (card.slug, card.arxiv, card.year) == ("stprivacy", "2301.03046", 2023)
    assert card.code is None and card.fidelity == "paper-only" and card.hosts == ()
