"""The embedded state-space model of canvases: small, loadable by name, and as good as its card says."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tithe.bench.tasks import canvas
from tithe.hosts import find
from tithe.modules.vim import VimForImageClassification
from tithe.zoo.loader import load_model

FOLDER = Path(str(files("tithe.zoo") / "vim"))
CARD = json.loads((FOLDER / "card.json").read_text())


def test_is_small_and_named() -> None:
    model, _, _ = load_model("zoo:vim")
    assert isinstance(model, VimForImageClassification) and not model.training
    assert find(model).kind == "vssm" and sum(p.numel() for p in model.parameters()) == CARD["parameters"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_reads_digits_as_its_card_says() -> None:
    model, processor, _ = load_model("zoo:vim")
    cases = [canvas.digits_case(seed, "test") for seed in range(100)]
    inputs = processor(images=[Image.fromarray(case.image) for case in cases], return_tensors="pt")
    labels = torch.from_numpy(np.stack([case.labels for case in cases]))
    with torch.no_grad():
        hit = model(**inputs).logits.view(100, 4, -1).argmax(-1) == labels
    told = {"occupied": hit[labels != canvas.EMPTY], "empty": hit[labels == canvas.EMPTY]}
    for name, hits in told.items():
        assert abs(hits.float().mean().item() - CARD["accuracy"][name]) < 0.05


def test_saved_and_loaded_again_it_is_the_same(tmp_path: Path) -> None:
    model, processor, _ = load_model("zoo:vim")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).model
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(image).logits, again(image).logits, atol=1e-5)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
