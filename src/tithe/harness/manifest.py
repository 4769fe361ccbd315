"""What tells lmms-eval of the model ``tithe``: it reads entry points of the group ``lmms_eval.models``."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's description of a model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="tithe", simple_class_path="tithe.harness.pictures.TitheVLM")
