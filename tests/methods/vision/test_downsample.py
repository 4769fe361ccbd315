from __future__ import annotations

import pytest
import torch
from methods.vision.contract import contract, decide, generated, model, prompts, shown, tokens
from torch.nn.functional import avg_pool2d

import tithe
from tithe.seams.merging import joined


@pytest.mark.parametrize(("keep", "side"), [(36, 6), (16, 4), (17, 4), (9, 3), (4, 2), (144, 12)])
def test_equals_average_pooling(keep: int, side: int) -> None:
    features = torch.randn(1, 144, 8)
    selection = decide(tithe.method("downsample", keep=keep), shown([]), tokens(144, (12, 12)))
    assert selection.dest is not None
    merged = joined(features, selection.dest[:, 0], None, selection.weight)[0][selection.keep[:, 0]]
    pooled = avg_pool2d(features.mT.view(1, 8, 12, 12), 12 // side).flatten(2)[0].T
    assert merged.shape == (side * side, 8)
    assert torch.allclose(merged, pooled, atol=1e-6)


def test_blocks_that_do_not_divide_the_grid_still_take_every_token_once() -> None:
    selection = decide(tithe.method("downsample", keep=12), shown([]), tokens(35, (5, 7)))
    assert selection.dest is not None
    keep, dest = selection.keep[0, 0], selection.dest[0, 0]
    assert (dest[keep] == -1).all() and keep[dest[~keep]].all()
    sizes = torch.bincount(torch.where(keep, torch.arange(35), dest))[keep]
    assert sizes.tolist() == [6, 3, 3, 3, 3, 3, 4, 2, 2, 2, 2, 2]


def test_the_language_model_reads_the_means() -> None:
    inputs = prompts([1, 1])
    out, run = generated("downsample", inputs, keep=4)
    assert [event.kept for event in run.trace.events] == [(4,), (4,)]
    with torch.no_grad():
        features = torch.stack(list(model().model.get_image_features(inputs["pixel_values"]).pooler_output))
        pooled = avg_pool2d(features.mT.view(2, -1, 4, 4), 2).flatten(2).mT
        ids, alive = inputs["input_ids"], inputs["attention_mask"]
        image = ids == model().config.image_token_id
        middles = torch.tensor([5, 7, 13, 15])
        embedded = model().get_input_embeddings()(ids)
        rows = []
        for row in range(2):
            kept = image[row].nonzero()[:, 0][middles]
            keep = ~image[row]
            keep[kept] = True
            embedded[row, kept] = pooled[row]
            positions = (alive[row].cumsum(-1) - 1).clamp(min=0)
            live = keep & alive[row].bool()
            rows.append(
                model()(
                    inputs_embeds=embedded[row, live][None],
                    attention_mask=torch.ones(1, int(live.sum()), dtype=torch.long),
                    position_ids=positions[live][None],
                ).logits[0, -1]
            )
    assert torch.allclose(out.logits[0], torch.stack(rows), atol=1e-4)


def test_contract() -> None:
    contract("downsample")
