from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from methods.vision.contract import classifier, pixels, read, vector
from methods.vision.naive_blocks import Read, Shown, by_hand
from methods.vision.test_evit import given
from torch import Tensor
from torch.nn.functional import layer_norm, linear

import tithe
from tithe.budget import Budget
from tithe.check import check_method
from tithe.errors import BadInput
from tithe.selections.condensing import Condense, averages
from tithe.selections.pace import Pace
from tithe.selections.reservoir import Reservoir, Seen, nearest

VECTOR, _ = vector("tca")
STAGES = {1: 1 / 3, 2: 2 / 3, 3: 1.0}


# -- recorded numbers of the authors' code -----------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 1])
def test_same_averages_as_the_authors(row: int) -> None:
    tokens = VECTOR["coreset_in"][:, row]
    _, weights = averages(tokens, 4)
    assert torch.allclose(weights @ tokens, VECTOR["coreset_out"][:, row], atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "anchor"])
def test_same_tokens_as_the_authors(case: str) -> None:
    attention, before, after = (VECTOR[f"{case}_{name}"] for name in ("cls", "before", "after"))
    mean = attention.mean(1, keepdim=True)
    chosen = Condense(Pace(Budget(after.shape[1] - 1), 1.0), 4)(torch.cat([mean, mean], 1), given(37, 2), before)
    assert chosen.mix is not None
    for row in range(2):
        mine = (chosen.mix[row] @ before[row])[chosen.keep[row, 0]]
        apart = torch.cdist(mine.double(), after[row].double())
        assert mine.shape == after[row].shape
        assert apart.amin(0).max() < 1e-4 and apart.amin(1).max() < 1e-4


def test_anchor_joins_attention_as_the_authors_one_does() -> None:
    """Their block, from its weights, with the nearest class token in front: the same CLS row."""
    x, anchors = VECTOR["anchor_x"], VECTOR["anchor_cache"]
    weight = {name[2:]: value for name, value in VECTOR.items() if name.startswith("w_")}
    shown = torch.cat([x, nearest(anchors, x[:, 0])[:, None]], 1)
    normed = layer_norm(shown, (32,), weight["ln_1.weight"], weight["ln_1.bias"])
    q, k, _ = linear(normed, weight["attn.in_proj_weight"], weight["attn.in_proj_bias"]).chunk(3, -1)
    q, k = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (q, k))
    row = (q[:, :, :1] @ k.mT / 8**0.5).softmax(-1)[:, :, 0, :37]
    assert torch.allclose(row, VECTOR["anchor_cls"], atol=1e-5)


def test_same_reservoir_and_logits_as_the_authors() -> None:
    held = Reservoir(3)
    for t, (cls, logits) in enumerate(zip(VECTOR["stream_cls"], VECTOR["stream_logits"], strict=True)):
        entropy = float(-(logits.softmax(0) * logits.log_softmax(0)).sum())
        held = held.add(int(logits.argmax()), Seen(cls, entropy))
        assert [len(held.images.get(k, [])) for k in range(3)] == VECTOR["stream_sizes"][t].tolist()
        assert torch.allclose(3.0 * held.told(cls, 3, 0.1, 5.0), VECTOR["stream_told"][t], atol=1e-4)
        for block in (2, 8):
            anchors = held.anchors(block, 3, 2)
            if anchors is not None:
                assert torch.allclose(anchors, VECTOR["stream_anchors"][t][:, block], atol=1e-6)
    assert held.anchors(2, 3, 2) is not None and held.anchors(2, 4, 2) is None


# -- the stream by loops -----------------------------------------------------------------------------------------------


def condensing(keep: float, centres: int, by: str):
    def between(block: int, x: Tensor, sizes: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        end = math.floor(36 * keep + 1e-9)
        target = round(36 * (end / 36) ** STAGES.get(block, 0.0))
        n = len(x) - 1
        if target >= n:
            return x, sizes
        cls = shown.probs[:, 0]
        mean = [float(cls[:, i].mean()) for i in range(n + 1)]
        if by == "rank":
            worth = [0.0] * (n + 1)
            for h in range(4):
                for place, i in enumerate(sorted(range(1, n + 1), key=lambda i: float(cls[h, i]))):
                    worth[i] += place
        else:
            worth = mean
        order = sorted(range(1, n + 1), key=lambda i: -worth[i])
        top = target - centres - 1
        below = max(1, round((n - target + centres - 1) / 3))
        band, rest = order[top : n - below], order[n - below :]
        chosen = [band[0]]
        while len(chosen) < centres:
            chosen.append(max(band, key=lambda i: min(float((x[i] - x[c]).norm()) for c in chosen)))
        made = {i: x[i] for i in [0, *order[:top]]}
        for c in chosen:
            mine = [i for i in band if min(chosen, key=lambda o: float((x[i] - x[o]).norm())) == c]
            weights = [1.0 if i == c else 1 / float((x[i] - x[c]).norm()) for i in mine]
            made[c] = sum(w * x[i] for w, i in zip(weights, mine, strict=True)) / sum(weights)
        made[rest[0]] = sum(mean[i] * x[i] for i in rest)
        return torch.stack([made[i] for i in sorted(made)]), torch.ones(len(made), dtype=torch.float64)

    return between


def stream(
    images: Tensor, by: str, size: int, least: int, scale: float, weight: float, sharpness: float
) -> list[Tensor]:
    """The whole method, one image after the other; at most so many classes as the classifier has seen predicted."""
    held: dict[int, list[tuple[Tensor, float]]] = {}
    out = []
    for image in images:

        def guest(block: int, cls: Tensor) -> Tensor | None:
            if block not in STAGES or len(held) < 7 or any(len(v) < least for v in held.values()):
                return None
            means = [torch.stack([c[block - 1] for c, _ in held[k]]).mean(0) for k in sorted(held)]
            return max(means, key=lambda m: float(m @ cls / m.norm() / cls.norm()))

        one: Read = by_hand(image, condensing(0.4, 3, by), guest)
        probs = one.logits.softmax(0)
        label = int(probs.argmax())
        held.setdefault(label, []).append((one.cls, float(-(probs * probs.log()).sum())))
        if len(held[label]) > size:
            means = [c.mean(0) / c.mean(0).norm() for c, _ in held[label]]
            cost = [
                e + sum(float(means[i] @ means[j]) for j in range(size + 1) if j != i) / size
                for i, (_, e) in enumerate(held[label])
            ]
            held[label].pop(cost.index(max(cost)))
        blocks = [math.exp(layer / 3 / scale) for layer in range(4)]
        logits = one.logits.clone()
        for k, kept in held.items():
            for cls, _ in kept:
                alike = sum(
                    w * float(a @ b / a.norm() / b.norm()) for w, a, b in zip(blocks, one.cls, cls, strict=True)
                ) / sum(blocks)
                logits[k] += weight * math.exp(-sharpness * (1 - alike))
        out.append(logits)
    return out


def unlike(count: int) -> Tensor:
    """Images of which the classifier predicts every class."""
    return 4 * torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def balanced() -> Iterator[None]:
    """The classifier predicts every class about as often."""
    bias = classifier().classifier.bias
    own = bias.detach().clone()
    with torch.no_grad():
        bias -= classifier()(pixel_values=unlike(64)).logits.mean(0)
    yield
    bias.data.copy_(own)


@pytest.mark.parametrize("by", ["attention", "rank"])
def test_stream_against_loops(by: str, balanced: None) -> None:
    images = unlike(32)
    wanted = stream(images, by, size=2, least=1, scale=0.5, weight=2.0, sharpness=4.0)
    chosen = tithe.method("tca", keep=0.4, centres=3, by=by, size=2, least=1, scale=0.5, weight=2.0, sharpness=4.0)
    joined = []
    with tithe.on(classifier(), chosen) as run, torch.no_grad():
        for image, logits in zip(images, wanted, strict=True):
            got = classifier()(pixel_values=image[None]).logits[0]
            assert torch.allclose(got.double(), logits, atol=1e-4)
            held = run.tower.replies.memory["reservoir"]
            joined.append(held.anchors(0, 7, 1) is not None)
    assert any(joined[:-1]) and not joined[0], "no anchor ever joined"
    assert run.report().flops < run.report().flops_full


def test_memory_lasts_until_reset() -> None:
    images = unlike(3)
    with tithe.on(classifier(), "tca") as run, torch.no_grad():
        first = classifier()(pixel_values=images[:1]).logits
        classifier()(pixel_values=images[1:])
        later = classifier()(pixel_values=images[:1]).logits
        run.reset()
        again = classifier()(pixel_values=images[:1]).logits
    with tithe.on(classifier(), "tca"), torch.no_grad():
        anew = classifier()(pixel_values=images[:1]).logits
    assert torch.equal(first, again) and torch.equal(first, anew) and not torch.allclose(first, later, atol=1e-3)


@pytest.mark.parametrize("left", range(1, 36))
def test_any_number_comes_out(left: int) -> None:
    score = torch.rand(1, 1, 37, generator=torch.Generator().manual_seed(left)).expand(1, 2, 37)
    features = torch.randn(1, 37, 4, generator=torch.Generator().manual_seed(0))
    chosen = Condense(Pace(Budget(left), 1.0), 4)(score, given(37), features)
    assert int(chosen.keep.sum()) == left + 1 and chosen.mix is not None
    assert torch.equal(chosen.mix[0].any(1) & chosen.keep[0, 0], chosen.keep[0, 0])


def test_arguments_are_checked() -> None:
    with pytest.raises(BadInput, match="rank"):
        tithe.method("tca", by="ranks")
    with pytest.raises(BadInput, match="centres"):
        tithe.method("tca", centres=0)


def test_serves_clip() -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**tower, "image_size": 24, "patch_size": 4},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    inputs = {"input_ids": torch.tensor([[1, 5, 2], [1, 7, 2]]), "pixel_values": pixels()["pixel_values"]}
    with torch.no_grad():
        plain = model(**inputs)
        with tithe.on(model, "tca", keep=0.4) as run:
            out = model(**inputs)
    assert (out.logits_per_image - plain.logits_per_image).abs().max() > 0.1 and run.trace.events
    assert torch.equal(out.logits_per_text, out.logits_per_image.T)


def test_reads_digits_that_random_patches_lose() -> None:
    ours, left = read("tca", keep=0.33)
    chance, as_many = read("random-blocks", keep=0.33, layer=3)
    assert left <= as_many and ours >= chance + 0.05


def test_contract() -> None:
    check_method("tca", classifier(), pixels())
