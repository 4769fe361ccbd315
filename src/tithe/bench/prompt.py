"""Prompts: a context as the model's inputs, and the questions that may stand in it or come after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe.zoo import Loaded

Inputs = dict[str, Tensor]
ALONG = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Ask:
    """A question: its tokens, as they follow the context, its text, the right answer and the room to write one.

    ``mark`` scores what was written, 0 to 1; None: right if it begins with the words of ``answer``. ``depth``: where in
    the context stands what is asked for, 0 (its start) to 1 (its end); None: nowhere in particular.
    """

    ids: tuple[int, ...]
    text: str
    answer: str | None
    room: int
    mark: Callable[[str], float] | None = None
    depth: float | None = None


@dataclass(frozen=True)
class Prompt:
    """A context ``[1, T]`` as keyword inputs of the model, and what is asked about it.

    ``names``: the things that answers may name, where it is known which of them the picture shows: ``shown``.
    """

    inputs: Inputs
    asks: tuple[Ask, ...]
    names: tuple[str, ...] = ()
    shown: frozenset[str] = frozenset()


def joined(inputs: Inputs, ids: tuple[int, ...]) -> Inputs:
    """Return ``inputs`` with ``ids`` behind the context."""
    if not ids:
        return inputs
    context = inputs["input_ids"]
    behind = torch.tensor([ids], device=context.device)
    out = {**inputs, "input_ids": torch.cat([context, behind], 1)}
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        out["attention_mask"] = torch.cat([mask, mask.new_ones(1, len(ids))], 1)
    for name in ALONG:
        if name in inputs:
            out[name] = torch.cat([inputs[name], inputs[name].new_zeros(1, len(ids))], 1)
    return out


def from_ids(model: Any, ids: tuple[int, ...]) -> Inputs:
    """Return token ids as inputs ``[1, T]`` on the model's device."""
    tokens = torch.tensor([ids], device=model.device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def compose(
    loaded: Loaded, *, text: str = "", image: Image.Image | None = None, question: str = "", room: int = 32
) -> Prompt:
    """Build a prompt from what a user gives; a chat template is applied where the checkpoint has one.

    Raises:
        BadInput: nothing to read, a picture for a model without eyes or none for a classifier, or a prompt that does
            not fit into the model's window.
    """
    if loaded.kind == "vit":
        if image is None or text or question:
            raise BadInput("a classifier reads one picture and no text: give image only.")
        return Prompt(on_device(loaded, loaded.processor(images=[image], return_tensors="pt")), ())
    if image is not None and loaded.kind == "llm":
        raise BadInput("image was given, but the model reads text only.")
    if not text.strip() and image is None:
        raise BadInput("prompt is empty: give a text of at least one token.")
    if image is not None and not (text.strip() or question.strip()):
        raise BadInput("prompt is empty: give a question about the picture.")
    if image is not None and not question:
        text, question = "", text
    before, behind = _rendered(loaded, text, image is not None, question)
    tokenizer = tokenizer_of(loaded)
    special = tokenizer.chat_template is None and not getattr(loaded.processor, "chat_template", None)
    if image is not None:
        led = once_led(tokenizer, before)
        inputs = on_device(loaded, loaded.processor(images=[image], text=[before], return_tensors="pt", **led))
    else:
        inputs = on_device(loaded, tokenizer([before], add_special_tokens=special, return_tensors="pt"))
    ids = tuple(tokenizer(behind, add_special_tokens=False)["input_ids"]) if behind else ()
    length = inputs["input_ids"].shape[1]
    if length + len(ids) == 0:
        raise BadInput("prompt is empty: give a text of at least one token.")
    check_window(loaded.model, length + len(ids) + room)
    return Prompt(inputs, (Ask(ids, question, None, room),))


def once_led(tokenizer: Any, text: str) -> dict[str, bool]:
    """Return the argument that keeps a processor from leading a rendered chat with its BOS a second time."""
    bos = tokenizer.bos_token
    return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}


def check_window(model: Any, length: int) -> None:
    """Refuse a prompt that with its answer reaches ``length`` tokens, beyond what the model was made for."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length > limit:
        raise BadInput(f"the prompt and its answer take {length} tokens, beyond the model's window of {limit}.")


def read_image(path: Path) -> Image.Image:
    """Return the picture at ``path`` in RGB, or raise in one line what is wrong with it."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except FileNotFoundError as error:
        raise BadInput(f"image='{path}' does not exist.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"image='{path}' cannot be read as a picture: {error}") from error


def read_text(path: Path) -> str:
    """Return the text at ``path``, or raise in one line what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"file='{path}' does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"file='{path}' cannot be read as UTF-8 text: {error}") from error


def tokenizer_of(loaded: Loaded) -> Any:
    """Return the tokenizer of a language or vision-language model."""
    return getattr(loaded.processor, "tokenizer", loaded.processor)


def pieces(tokenizer: Any, ids: list[int], reach: int = 4) -> tuple[str, ...]:
    """Return the text that each token adds to those before it, so that spaces and split characters come out right."""
    found = []
    for place in range(len(ids)):
        start = max(0, place - reach)
        before = tokenizer.decode(ids[start:place], clean_up_tokenization_spaces=False)
        after = tokenizer.decode(ids[start : place + 1], clean_up_tokenization_spaces=False)
        found.append(after[len(before) :] if after.startswith(before) else tokenizer.decode([ids[place]]))
    return tuple(found)


def _rendered(loaded: Loaded, text: str, image: bool, question: str) -> tuple[str, str]:
    """Return the whole prompt in two parts: up to the question, and from it on."""
    processor = loaded.processor
    if getattr(processor, "chat_template", None):
        said = "\n".join(part for part in (text, question) if part)
        content: Any = [{"type": "image"}] * image + [{"type": "text", "text": said}] if loaded.kind == "vlm" else said
        whole = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    else:
        token = getattr(processor, "image_token", "<image>")
        gap = "" if not text or not question or text[-1].isspace() else "\n"
        whole = (f"{token} " if image else "") + text + gap + question
    if not question:
        return whole, ""
    place = whole.rindex(question) if question in whole else len(whole)
    return whole[:place], whole[place:]


def on_device(loaded: Loaded, batch: Any) -> Inputs:
    """Return what a processor made, on the device of the model and in its precision."""
    model = loaded.model
    return {
        name: tensor.to(model.device, model.dtype) if tensor.is_floating_point() else tensor.to(model.device)
        for name, tensor in batch.items()
    }
