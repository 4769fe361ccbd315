from __future__ import annotations

import pytest
import torch
from methods.vision.contract import by_loops, classifier, layer, pixels, read, vector
from torch import Tensor
from transformers import ViTConfig, ViTModel

import tithe
from tithe.check import check_method
from tithe.errors import BadInput
from tithe.scores.vision import cls_times_value
from tithe.selections.sampling import InverseTransform, drawn
from tithe.types import Tokens

VECTOR, _ = vector("ats")
KINDS = ("weight", "bias")


@pytest.mark.parametrize(("case", "points"), [(0, 144), (1, 199)])
def test_same_scores_and_tokens_as_the_authors(case: int, points: int) -> None:
    rows = layer(torch.ones(2, 4, 1, 1), VECTOR["attention_cls"].log()[..., None], VECTOR["values"], scaling=1.0)
    among = torch.ones(2, 1, 145, dtype=torch.bool)
    among[..., 0] = False
    score = cls_times_value(rows, among)
    assert torch.allclose(score[:, 0, 1:].sort(-1).values, VECTOR["sorted_scores"], atol=1e-7)
    assert torch.equal(score[:, 0, 1:].argsort(-1), VECTOR["sorted_indices"].long())
    assert torch.equal(drawn(score[:, 0], among[:, 0], points)[:, 1:], VECTOR[f"kept_{case}"][:, 1:])


def recorded(rows: Tensor) -> ViTModel:
    """The authors' two blocks as a ViT."""
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=48,
        patch_size=4,
        layer_norm_eps=1e-5,
    )
    vit = ViTModel(config, add_pooling_layer=False).eval()
    vit.embeddings.register_forward_hook(lambda module, args, out: rows)
    for index, block in enumerate(vit.layers):
        weights = {name[4:]: value for name, value in VECTOR.items() if name.startswith(f"w.{index}.")}
        named = {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj"}
        named |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        state = {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for ours, theirs in named.items() for kind in KINDS}
        for kind in KINDS:
            for part, chunk in zip("qkv", weights[f"attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"attention.{part}_proj.{kind}"] = chunk
        block.load_state_dict(state)
    return vit


@pytest.mark.parametrize("together", [False, True])
def test_same_blocks_as_the_authors(together: bool) -> None:
    """Alone and in a batch: the authors' rows were run alone."""
    for row in range(2):
        rows = VECTOR["block_x"] if together else VECTOR["block_x"][row : row + 1]
        here = row if together else 0
        vit = recorded(rows)
        outputs: list[Tensor] = []
        with tithe.on(vit, "ats", points=144, layer=0, level="kept") as run, torch.no_grad():
            for block in vit.layers:
                block.register_forward_hook(lambda module, args, out: outputs.append(out))
            vit(pixel_values=torch.zeros(len(rows), 3, 48, 48))
        for index, event in enumerate(run.trace.events):
            wanted = VECTOR[f"block_kept_{row}_{index}"].tolist()
            stayed = event.cols[here, 0][event.keep[here, 0]].tolist()
            assert stayed == sorted(wanted)
            if not together:
                order = sorted(range(len(wanted)), key=wanted.__getitem__)
                assert torch.allclose(outputs[index][0], VECTOR[f"block_out_{row}_{index}"][order], atol=1e-4)


def sampling(points: int, first: int):
    """Inverse-transform sampling by loops, in the blocks from ``first`` on."""

    def between(block: int, x: Tensor, sizes: Tensor, keys: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        if block < first:
            return x, sizes
        order = sorted(range(1, len(x)), key=lambda place: float(mass[place]))
        share = [float(mass[place] / mass[1:].sum()) for place in order]
        total = [sum(share[: n + 1]) for n in range(len(share))]
        stands = [(one - total[0]) / (total[-1] - total[0]) for one in total]
        start = min(one for one in stands if one > 0)
        hit = set()
        for point in range(points):
            y = start + (1 - start) * point / (points - 1)
            gaps = [abs(y - one) for one in stands]
            hit.add(order[gaps.index(min(gaps))])
        stay = [0, *sorted(hit)]
        return x[stay], sizes[stay]

    return between


@pytest.mark.parametrize(("points", "first"), [(36, 1), (12, 0), (60, 2)])
def test_against_loops(points: int, first: int) -> None:
    wanted = by_loops(pixels()["pixel_values"], sampling(points, first))
    with tithe.on(classifier(), "ats", points=points, layer=first) as run, torch.no_grad():
        logits = classifier()(**pixels()).logits
    assert torch.allclose(logits.double(), torch.stack(wanted), atol=1e-4)
    counts = [event.kept for event in run.trace.events]
    assert counts[:first] == [(37.0,) * 3] * first
    assert any(len(set(row)) > 1 for row in counts[first:])


def test_points_bound_the_tokens() -> None:
    for points in (1, 2, 5):
        with tithe.on(classifier(), "ats", points=points, layer=0) as run, torch.no_grad():
            classifier()(**pixels())
        assert all(1 < count <= 1 + points for event in run.trace.events for count in event.kept)


def test_points_are_positive() -> None:
    with pytest.raises(BadInput, match="points=0"):
        tithe.method("ats", points=0)


def test_reads_digits_that_random_patches_lose() -> None:
    sampled, _ = read("ats", points=1.0, layer=1)
    assert sampled >= read("random-blocks", keep=36, layer=1)[0] + 0.2


def test_contract() -> None:
    check_method("ats", classifier(), pixels())


def test_a_floor_and_a_ceiling_bound_what_images_keep() -> None:
    draw = torch.Generator().manual_seed(5)
    score = torch.rand(3, 1, 33, generator=draw) ** 6
    score[..., 0] = 0
    kind = torch.ones(3, 1, 33, dtype=torch.long)
    kind[..., 0] = 0
    cols = torch.arange(33, dtype=torch.int32).expand(3, 1, -1)
    given = Tokens(cols, torch.ones(3, 1, 33, dtype=torch.bool), torch.full((3,), 33), kind)
    free = InverseTransform(16)(score, given).keep[:, 0, 1:]
    least, most = int(free.sum(-1).min()), int(free.sum(-1).max())
    assert least > 1
    more = InverseTransform(16, floor=most + 3)(score, given).keep[:, 0, 1:]
    assert more.sum(-1).tolist() == [most + 3] * 3 and bool((more | ~free).all())
    less = InverseTransform(16, ceiling=0.125)(score, given).keep[:, 0, 1:]
    for row in range(3):
        chosen = score[row, 0, 1:].masked_fill(~free[row], -1).topk(min(4, int(free[row].sum()))).indices
        assert set(less[row].nonzero()[:, 0].tolist()) == set(chosen.tolist())
