from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods.vision.contract import asked, contract, generated, kept, prompts, right, tokens, vector
from tiny_vision import VLMS
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm

import tithe
from tithe import method
from tithe.actions.resample import Resampler
from tithe.budget import Budget
from tithe.errors import Refused
from tithe.scores import redundancy
from tithe.scores.redundancy import farthest, unlike_later
from tithe.seams.evidence import Evidence
from tithe.selections.top_k import TopK
from tithe.types import checked

VECTOR, META = vector("textmonkey")
NAMES = {
    "downsample": "down",
    "layers.0.0.norm_media": "norm_all",
    "layers.0.0.norm_latents": "norm_kept",
    "layers.0.0.to_q": "query",
    "layers.0.0.to_kv": "key_value",
    "layers.0.0.to_out": "out",
    "layers.0.1.norm": "norm",
    "layers.0.1.fc1": "fc1",
    "layers.0.1.fc2": "fc2",
}


def theirs() -> dict[str, Tensor]:
    """Recorded weights by our names."""
    found = {"heads": torch.tensor(float(META["parameters"]["heads"])), "scale": VECTOR["w.layers.0.1.scale"]}
    for name, value in VECTOR.items():
        stem, _, kind = name.removeprefix("w.").rpartition(".")
        if stem in NAMES:
            found[f"{NAMES[stem]}.{kind}"] = value
    return found


def chosen(features: Tensor, keep: int) -> list[int]:
    """The places kept of one picture's features ``[n, d]``."""
    evidence, given = Evidence({}, None, {}, features=features[None]), tokens(len(features))
    return kept(TopK(Budget(keep))(checked(unlike_later(evidence, given), given, "textmonkey", "here"), given))


@pytest.mark.parametrize("count", META["parameters"]["kept"])
@pytest.mark.parametrize("row", [0, 1])
def test_same_tokens_and_numbers_as_the_authors(count: int, row: int) -> None:
    features = VECTOR["features"][row]
    stay = chosen(features, count)
    assert torch.equal(features[stay], VECTOR[f"picked_{count}"][row])
    made = Resampler(theirs())(features[stay], features)
    assert torch.allclose(made, VECTOR[f"output_{count}"][row], atol=1e-5)


def test_naive_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores pair by pair and the resampler token by token, in float64; scores in blocks of rows."""
    features = torch.randn(23, 8, generator=torch.Generator().manual_seed(0))
    exact = features.double()
    wanted = []
    for one in range(23):
        alike = [float(exact[one] @ exact[two] / exact[one].norm() / exact[two].norm()) for two in range(one + 1, 23)]
        wanted.append(-max(alike, default=-1.0))
    monkeypatch.setattr(redundancy, "ROWS", 5)
    assert torch.allclose(farthest(features[None])[0].double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-6)
    stay = chosen(features, 6)
    assert stay == sorted(sorted(range(23), key=lambda place: -wanted[place])[:6]) and stay[-1] == 22
    w = {name: value.double() for name, value in theirs().items()}

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    few = exact @ w["down.weight"].T
    both = torch.cat([norm("norm_all", few), norm("norm_kept", few[stay])])
    made = Resampler(theirs())(features[stay], features)
    heads = int(w["heads"])
    size = len(w["query.weight"]) // heads
    for row, place in enumerate(stay):
        query = w["query.weight"] @ norm("norm_kept", few[place])
        keys, values = (both @ w["key_value.weight"].T).chunk(2, 1)
        read = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            odds = [math.exp(float(query[part] @ key[part]) / math.sqrt(size)) for key in keys]
            read.append(torch.stack([odd / sum(odds) * v[part] for odd, v in zip(odds, values, strict=True)]).sum(0))
        inner = norm("norm", w["out.weight"] @ torch.cat(read))
        added = w["fc2.weight"] @ gelu(w["fc1.weight"] @ inner)
        assert torch.allclose(made[row].double(), exact[place] + w["scale"] * added, atol=1e-5)


def test_alike_tokens_go_first() -> None:
    """Of a run of equal tokens only the last stays."""
    features = torch.eye(8)[[0, 0, 0, 1, 1, 2, 3, 4]]
    assert chosen(features, 5) == [2, 4, 5, 6, 7]


def test_counts_and_contract() -> None:
    _, run = generated("textmonkey", prompts([1, 2]), keep=0.25)
    assert [event.kept for event in run.trace.events] == [(4,)] * 3
    contract("textmonkey")


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(Refused, match="128"):
        tithe.on(VLMS["llava"].model(), "textmonkey", weights="vlm")
    assert method("textmonkey").steps[0].suits is None


def told(**params: Any) -> float:
    """The loss of the answers about canvases, in nats, under three image tokens of 144."""
    vlm, processor, cases, inputs = asked()
    answers = processor.tokenizer([case.answer for case in cases], add_special_tokens=False, return_tensors="pt")
    with tithe.on(vlm, params.pop("slug"), keep=3, **params), torch.no_grad():
        logits = vlm(**inputs, use_cache=False).logits[:, -1]
    return cross_entropy(logits, answers["input_ids"][:, 0]).item()


def test_on_the_zoo() -> None:
    """The tokens chosen answer more than random ones and averages do; what they read of the others lowers the loss."""
    bare, chance, plain = (right(slug, keep=3) for slug in ("textmonkey", "random-patches", "downsample"))
    assert bare > max(chance, plain) + 0.3, f"{bare:.3f}, random {chance:.3f}, averages {plain:.3f}"
    trained, untrained = told(slug="textmonkey", weights="vlm"), told(slug="textmonkey")
    assert trained < untrained - 0.3, f"trained {trained:.3f}, not trained {untrained:.3f} nats"
