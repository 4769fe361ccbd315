"""Put every seam that a run needs on its model, or none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tithe.seams.attention import Tapped
from tithe.seams.forward import ForwardSeam
from tithe.seams.layers import LayerSeam
from tithe.seams.statespace import ScanSeam
from tithe.seams.text import TextTap
from tithe.seams.window import ModelState

if TYPE_CHECKING:
    from tithe.flow import Run


class Seam(Protocol):
    """Something put on a model that can be taken off again."""

    def restore(self) -> None:
        """Undo it exactly."""
        ...


@runtime_checkable
class Lasting(Protocol):
    """A seam that remembers what was shown from one control step to the next."""

    def reset(self) -> None:
        """Forget it: a new episode begins."""
        ...


def attach(run: Run) -> list[Seam]:
    """Attach the seams in order; if one fails, those before it are taken off and the model is as it was."""
    seams: list[Seam] = []
    host = run.host
    try:
        if host.kind == "ssm":
            seams.append(ScanSeam(run))
        elif host.kind == "vssm":
            from tithe.seams.visionscan import VisionScanSeam

            seams.append(VisionScanSeam(run))
        elif host.kind == "vla":
            from tithe.seams.policy import PolicySeam

            seams.append(PolicySeam(run))
        elif host.kind == "vggt":
            from tithe.seams.geometry import GeometrySeam

            seams.append(GeometrySeam(run))
        elif host.text is not None:
            tap = TextTap(run)
            tap.tapped = Tapped(host.text, list(host.layers), tap)
            seams.append(tap.tapped)
            seams.append(ForwardSeam(run))
            seams.append(LayerSeam(run))
        if host.vision is not None and host.kind in ("vlm", "vit"):
            from tithe.seams.image import image_seams

            seams.extend(image_seams(run))
        for bound in run.plan.at("model"):
            assert bound.step.action is not None
            bound.step.action.apply(ModelState(run, seams), None)  # type: ignore[arg-type]
    except Exception:
        for seam in reversed(seams):
            seam.restore()
        raise
    return seams
