"""Models come from safetensors, whole, offline and without a word, or are refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tithe.errors import BadInput
from tithe.zoo import Loaded, load, load_model
from tithe.zoo.loader import quiet

KINDS = {"llm": "LlamaForCausalLM", "vlm": "LlavaForConditionalGeneration", "vit": "ViTForImageClassification"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as save_pretrained writes them."""
    folders = {}
    for name in KINDS:
        loaded, folder = load_model(f"zoo:{name}"), tmp_path_factory.mktemp(name)
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        folders[name] = folder
    return folders


@pytest.mark.parametrize("name", KINDS)
def test_zoo_models_are_ready_to_use(name: str) -> None:
    model, reader = load(name)
    assert type(model).__name__ == KINDS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training and model.config._attn_implementation == "sdpa"
    assert callable(reader)


def test_unknown_zoo_name_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'llm'"):
        load("lllm")


@pytest.mark.parametrize("name", KINDS)
def test_saved_folder_is_the_same_model(name: str, saved: dict[str, Path]) -> None:
    first, second = load_model(f"zoo:{name}"), load_model(str(saved[name]), dtype="float32")
    assert second.kind == name and type(second.processor) is type(first.processor)
    old, new = first.model.state_dict(), second.model.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


def test_dtype_is_the_one_asked_for() -> None:
    assert load_model("zoo:vit", dtype="bfloat16").model.dtype == torch.bfloat16


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str], saved: dict[str, Path]) -> None:
    for name in KINDS:
        load_model(str(saved[name]))
    assert capfd.readouterr() == ("", "")


def test_quiet_gives_the_voice_back() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(RuntimeError), quiet():
        assert logging.get_verbosity() == logging.ERROR
        raise RuntimeError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_pickled_weights_are_refused_and_not_opened(tmp_path: Path, saved: dict[str, Path]) -> None:
    folder, mark = tmp_path / "pickled", tmp_path / "mark"
    folder.mkdir()
    for file in saved["llm"].iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(BadInput, match="has no safetensors weights") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value) and not mark.exists()


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path, saved: dict[str, Path]) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "own"
    folder.mkdir()
    config = json.loads((saved["llm"] / "config.json").read_text())
    config |= {"model_type": "nobody", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    with pytest.raises(BadInput, match="custom code"):
        load_model(str(folder))
    assert not mark.exists()


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path: Path, saved: dict[str, Path]) -> None:
    for file in saved["vit"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 are missing, such as classifier\.weight"):
        load_model(str(tmp_path))


def small(model: type[PreTrainedModel], config: Any, folder: Path) -> str:
    with torch.random.fork_rng():
        model(config).save_pretrained(folder)
    return str(folder)


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = small(BertForMaskedLM, BertConfig(**sizes, vocab_size=20), tmp_path / "bert")
    with pytest.raises(BadInput, match="is a BertForMaskedLM"):
        load_model(bert)
    config = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=20)
    with pytest.raises(BadInput, match="is a T5ForConditionalGeneration"):
        load_model(small(T5ForConditionalGeneration, config, tmp_path / "t5"))


def test_a_plain_vision_encoder_is_served(tmp_path: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    folder = small(CLIPVisionModel, config, tmp_path)
    load_model("zoo:vit").processor.save_pretrained(folder)
    loaded = load_model(folder)
    assert isinstance(loaded, Loaded) and loaded.kind == "vit" and isinstance(loaded.model, CLIPVisionModel)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./gone", "a/b/c", ""])
def test_what_is_no_folder_is_refused(source: str) -> None:
    with pytest.raises(BadInput, match="is not a folder"):
        load_model(source)


def test_a_hub_id_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(BadInput, match="no-one/nothing") as error:
        load_model("no-one/nothing")
    assert "\n" not in str(error.value)


def test_unknown_dtype_and_device() -> None:
    with pytest.raises(BadInput, match="Did you mean 'bfloat16'"):
        load_model("zoo:vit", dtype="bfloat")
    with pytest.raises(BadInput, match="device='nope'"):
        load_model("zoo:vit", device="nope")
