"""Load a model with its tokenizer or processor: from the package, from a folder, or from the Hugging Face hub.

Weights come from safetensors only: unpickling a checkpoint would run whatever code is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import logging as hub
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto
from transformers.utils import logging as verbosity
from transformers.utils.hub import has_file

from tithe.errors import BadInput, unknown
from tithe.files import is_folder
from tithe.hosts.statespace import FAMILIES as STATE_SPACE
from tithe.modules import vim
from tithe.types import HostKind
from tithe.zoo.stills import StillsProcessor

NAMES = ("llm", "reader", "scenes", "ssm", "vim", "vit", "vlm")
PREFIX = "zoo:"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


class Loaded(NamedTuple):
    """A model in eval mode, its tokenizer (llm, ssm), processor (vlm) or image processor (vit), and what it does.

    A classifier is a ``vit`` whatever it is made of; ``tithe.hosts`` says more of that.
    """

    model: PreTrainedModel
    processor: Any
    kind: HostKind


def load(name: str) -> tuple[PreTrainedModel, Any]:
    """Return an embedded model (one of ``NAMES``) in float32 and its tokenizer or processor. Offline.

    Raises:
        BadInput: no such name.
    """
    loaded = load_model(PREFIX + name.removeprefix(PREFIX))
    return loaded.model, loaded.processor


def load_model(
    source: str, *, dtype: torch.dtype | str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> Loaded:
    """Return the model at ``source``: ``zoo:llm``, a folder as ``save_pretrained`` writes it, or a hub id.

    Raises:
        BadInput: no such model, no safetensors in it, an architecture that is no language model, vision-language
            model or vision encoder, or weights that do not fill the model.
    """
    place, offline = _place(source)
    options: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": trust_remote_code}
    wanted, where = _dtype(dtype), _device(device)
    vim.register()
    with quiet():
        try:
            config = AutoConfig.from_pretrained(place, **options)
            _check_weights(source, place, offline)
            kind, auto = _architecture(source, config)
            model, report = auto.from_pretrained(
                place, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True, **options
            )
            processor = _reader(kind, config).from_pretrained(place, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            if isinstance(error, BadInput):
                raise
            where_from = "" if offline else "is no folder here, and from the hub it "
            raise BadInput(f"model={source!r} {where_from}cannot be loaded: {_first_line(error)}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
        raise BadInput(
            f"model={source!r}: its weights do not fill a {type(model).__name__}; "
            f"{len(lacking)} are missing, such as {lacking[0]}."
        )
    return Loaded(model.to(where).eval(), processor, kind)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what transformers prints while it loads; errors are raised as ever."""
    level, hub_level, bar = verbosity.get_verbosity(), hub.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    hub.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        yield
    finally:
        verbosity.set_verbosity(level)
        hub.set_verbosity(hub_level)
        if bar:
            verbosity.enable_progress_bar()


def _place(source: str) -> tuple[str, bool]:
    """Return where to load from, and whether only this machine is to be asked."""
    if source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        if name not in NAMES:
            raise unknown("zoo model", name, NAMES)
        return str(files("tithe.zoo") / name), True
    if source and is_folder(source):
        return str(Path(source).expanduser()), True
    if os.path.lexists(source) or source.count("/") > 1 or source[:1] in ("/", ".", "~", ""):
        raise BadInput(f"model={source!r} is not a folder; give zoo:llm, a folder with a checkpoint, or a hub id.")
    return source, False


def _check_weights(source: str, place: str, offline: bool) -> None:
    if not any(has_file(place, name, local_files_only=offline) for name in WEIGHTS):
        raise BadInput(
            f"model={source!r} has no safetensors weights ({' or '.join(WEIGHTS)}); pickled weights are never loaded: "
            "save the model again with save_pretrained."
        )


def _architecture(source: str, config: Any) -> tuple[HostKind, Any]:
    """Return the kind of the checkpoint and the class that loads it, by what its configuration says it is."""
    kinds: tuple[tuple[HostKind, Any, Any], ...] = (
        ("vlm", AutoModelForImageTextToText, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        ("llm", AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("vit", AutoModelForImageClassification, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    )
    stated = (config.architectures or [""])[0]
    remote = set(getattr(config, "auto_map", None) or {})
    for kind, auto, names in kinds:
        if stated in _classes(names.get(config.model_type)) or auto.__name__ in remote:
            return "ssm" if config.model_type in STATE_SPACE else kind, auto
    if config.model_type == vim.VimConfig.model_type:
        return "vit", AutoModelForImageClassification
    encoder = config.model_type in kinds[2][2] or config.model_type.endswith("vision_model")
    if encoder and stated in _classes(modeling_auto.MODEL_MAPPING_NAMES.get(config.model_type)):
        return "vit", AutoModel
    raise BadInput(
        f"model={source!r} is a {stated or config.model_type}; Tithe works on causal language models, "
        "vision-language models, image classifiers and vision encoders."
    )


def _reader(kind: HostKind, config: Any) -> Any:
    if config.model_type == "llava_onevision":
        return StillsProcessor
    return {"llm": AutoTokenizer, "ssm": AutoTokenizer, "vlm": AutoProcessor, "vit": AutoImageProcessor}[kind]


def _classes(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def _device(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device={device!r} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
