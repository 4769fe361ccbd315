"""Several pictures, or a clip of frames, as a prompt; and what a visual method needs of one."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from tithe import frames, hosts
from tithe.bench.prompt import Ask, Inputs, Prompt, check_window, on_device, once_led, tokenizer_of
from tithe.errors import BadInput
from tithe.seams.features import placeholders
from tithe.types import Method

if TYPE_CHECKING:
    from tithe.zoo import Loaded


def album(
    loaded: Loaded, pictures: Sequence[Image.Image], *, text: str = "", question: str = "", room: int = 32
) -> Prompt:
    """Build a prompt of several pictures, each behind its name (``picture a``), then ``text`` and ``question``.

    Raises:
        BadInput: a model that reads text only, or one picture; nothing to ask; or a prompt beyond the model's window.
    """
    _check_kind(loaded, "image", question or text)
    text, question = (text, question) if question else ("", text)
    said = [part for n in range(len(pictures)) for part in (f"picture {letter(n)}", None)]
    before, behind = _rendered(loaded, [*said, *filter(None, [text])], question)
    led = once_led(tokenizer_of(loaded), before)
    batch = loaded.processor(images=[list(pictures)], text=[before], return_tensors="pt", **led)
    return _asked(loaded, on_device(loaded, batch), behind, question, room)


def clip(loaded: Loaded, film: Tensor, *, text: str = "", question: str = "", room: int = 32) -> Prompt:
    """Build a prompt of a clip ``[F, 3, H, W]`` (uint8), then ``text`` and ``question``.

    Raises:
        BadInput: a model that takes no clips; nothing to ask; or a prompt beyond the model's window.
    """
    _check_kind(loaded, "video", question or text)
    text, question = (text, question) if question else ("", text)
    before, behind = _rendered(loaded, [frames.PLACE, *filter(None, [text])], question)
    reader = getattr(loaded.processor, "image_processor", loaded.processor)
    encoded = frames.encode(loaded.model, reader, film)
    inputs = frames.compose(loaded.model, tokenizer_of(loaded), encoded, before, room)
    return _asked(loaded, inputs, behind, question, room)


def letter(number: int) -> str:
    """Return the name of a picture among others: a, b, c …, and numbers once the letters are used up."""
    return ascii_lowercase[number] if number < len(ascii_lowercase) else str(number + 1)


def check_seen(loaded: Loaded, methods: Sequence[Method], inputs: Inputs) -> None:
    """Refuse a visual method that would find nothing to choose from, or less than what it is to keep.

    Raises:
        BadInput: no image tokens in the prompt, or fewer of them than a ``keep`` that counts them.
    """
    visual = [method for method in methods if method.card.family == "vision" and loaded.kind in method.card.hosts]
    if not visual:
        return
    tokens = _image_tokens(loaded, inputs)
    for method in visual:
        slug, keep = method.card.slug, method.params.get("keep")
        if not tokens:
            raise BadInput(f"image is missing: {slug} chooses among image tokens, and the prompt has none.")
        if isinstance(keep, int) and not isinstance(keep, bool) and keep > tokens:
            raise BadInput(f"keep={keep} of {slug} is out of range; the prompt has {tokens} image tokens.")


def _image_tokens(loaded: Loaded, inputs: Inputs) -> int:
    host = hosts.find(loaded.model)
    if loaded.kind == "vit":
        from tithe.bench.tasks.vision import patches_and_cls

        assert host.vision is not None
        return patches_and_cls(loaded.model, inputs) - int(host.vision.cls)
    return int(placeholders(host, inputs["input_ids"]).sum())


def _check_kind(loaded: Loaded, given: str, asked: str) -> None:
    if loaded.kind == "vit":
        raise BadInput("a classifier reads one picture and no text: give one image only.")
    if loaded.kind != "vlm":
        raise BadInput(f"{given} was given, but the model reads text only.")
    if not asked.strip():
        raise BadInput(f"prompt is empty: give a question about the {'pictures' if given == 'image' else given}.")


def _asked(loaded: Loaded, inputs: Inputs, behind: str, question: str, room: int) -> Prompt:
    ids = tuple(tokenizer_of(loaded)(behind, add_special_tokens=False)["input_ids"])
    check_window(loaded.model, inputs["input_ids"].shape[1] + len(ids) + room)
    return Prompt(inputs, (Ask(ids, question, None, room),))


def _rendered(loaded: Loaded, said: Sequence[str | None], question: str) -> tuple[str, str]:
    """Return a prompt in two parts, up to the question and from it on; None stands for a picture."""
    processor = loaded.processor
    if not getattr(processor, "chat_template", None):
        token = getattr(processor, "image_token", "<image>")
        return " ".join(token if part is None else part for part in said) + " ", question
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in said]
    content.append({"type": "text", "text": question})
    whole: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    place = whole.rindex(question)
    return whole[:place], whole[place:]
