"""After the encoder: image features are chosen or merged, and the prompt loses the columns of those dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tithe.seams.features import MODALITIES
from tithe.seams.gallery import Gallery
from tithe.seams.inputs import arguments, encoder_outputs, shortened
from tithe.trace import Stopwatch

if TYPE_CHECKING:
    from tithe.flow import Run

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def encoded(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Encode the pictures and clips of this forward where nobody has, as ``generate`` does before it calls the model.

    Encoders may share arguments, so these are taken out only once all have run.
    """
    used: set[str] = set()
    outputs = dict(encoder_outputs(kwargs))
    for name in MODALITIES:
        if run.host.vision is None or kwargs.get(PIXELS[name]) is None:
            continue
        encode = getattr(run.host.model.base_model, f"get_{name}_features")
        inputs = arguments(encode, kwargs)
        outputs[name] = encode(**inputs, return_dict=True)
        used |= set(inputs)
    if not used:
        return kwargs
    kept = {name: value for name, value in kwargs.items() if name not in used}
    return {**kept, "mm_encoder_outputs": outputs}


def chosen(run: Run, outputs: dict[str, Any], ids: Tensor | None) -> Gallery:
    """Fire the encoder steps on what the encoders gave for the placeholders in ``ids``."""
    gallery = Gallery(run, outputs, ids)
    for bound in run.plan.at("encoder"):
        for image in gallery.images(bound.step.site.per):
            run.fire(bound, image.evidence(run, bound), image.tokens(), image, None, item=image.number)
    run.tower.forget()
    return gallery


def prepare(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Fire the encoder steps on all pictures and clips of this forward, and return the shortened inputs."""
    outputs = encoder_outputs(kwargs)
    if all(outputs.get(name) is None for name in MODALITIES):
        return kwargs
    with Stopwatch(run.trace.clocks["select"]):
        gallery = chosen(run, outputs, kwargs.get("input_ids"))
        return shortened(run, {**kwargs, "mm_encoder_outputs": {**outputs, **gallery.rebuilt()}}, gallery.index())
