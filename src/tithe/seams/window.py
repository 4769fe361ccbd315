"""A longer window: rotary frequencies rescaled in place while a method is attached, and put back bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tithe.errors import BadInput, Refused
from tithe.seams.frames import FramesSeam

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.attach import Seam

_CHANGING = ("dynamic", "longrope")


class ModelState:
    """What an action on a model as a whole may change; each change is a seam that is taken off with the others."""

    def __init__(self, run: Run, seams: list[Seam]) -> None:
        self.run, self.seams = run, seams

    def stretch(self, scale: float) -> None:
        """Make the text tower's window ``scale`` times as long."""
        self.seams.append(WindowSeam(self.run, scale))

    def regroup(self, frames: int) -> None:
        """Have videos encoded in interleaved groups of at most ``frames`` frames."""
        self.seams.append(FramesSeam(self.run, frames))

    def share(self, interval: int) -> None:
        """Run the parts of an action head in one of ``interval`` denoising steps."""
        from tithe.seams.policy import PolicySeam

        next(seam for seam in self.seams if isinstance(seam, PolicySeam)).share(interval)


class WindowSeam:
    """The rotary frequencies of a text tower, those of layers with a sliding window left out: these never reach far."""

    def __init__(self, run: Run, scale: float) -> None:
        host = run.host
        self._before: list[tuple[Tensor, Tensor]] = []
        for module in host.text.modules() if host.text is not None else ():
            for name, buffer in module.named_buffers(recurse=False):
                if not name.endswith("inv_freq") or "original" in name or "sliding" in name:
                    continue
                types = getattr(module, "rope_type", "default")
                changing = [t for t in (types.values() if isinstance(types, dict) else [types]) if t in _CHANGING]
                if changing:
                    raise Refused(f"{host.name} has rope_type {changing[0]!r}, which rescales itself with length.")
                self._before.append((buffer, buffer.clone()))
        if not self._before:
            raise Refused(f"{host.name} has no rotary frequencies that could be rescaled.")
        for buffer, old in self._before:
            buffer.copy_(stretched(old, scale))

    def restore(self) -> None:
        """Put the frequencies back."""
        for buffer, old in self._before:
            buffer.copy_(old)


def stretched(frequencies: Tensor, scale: float) -> Tensor:
    """Return rotary ``frequencies [d / 2]`` on a base that is ``scale ** (d / (d - 2))`` times as large.

    The highest frequency stays, the lowest is divided by ``scale``: "NTK-aware" interpolation.
    """
    half = frequencies.shape[0]
    if half < 2:
        return frequencies / scale
    share = torch.arange(half, dtype=torch.float64, device=frequencies.device) / (half - 1)
    return (frequencies.double() * float(scale) ** -share).to(frequencies.dtype)


def check_reach(run: Run) -> None:
    """Refuse a prompt beyond a window that was made longer."""
    scales = [getattr(bound.step.action, "scale", None) for bound in run.plan.at("model")]
    scale = max((scale for scale in scales if scale is not None), default=None)
    limit = getattr(run.host.config, "max_position_embeddings", None)
    end = run.stream.end if run.stream is not None else 0
    if scale is not None and limit and end > limit * scale and not run.beyond_window:
        raise BadInput(
            f"input_ids reach position {end}, beyond {scale:g} times the model's window of {limit}: raise scale, or "
            "pass beyond_window=True to tithe.on."
        )
