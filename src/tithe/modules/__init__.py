"""Attention mechanisms, encoders and models with an architecture of their own, to build and train models from.

Each file holds the functions of one paper, a layer around them and its card. No existing model is changed by them;
``seams.replaced`` puts ``CCA`` and ``Still`` in place of the attention of a loaded one.
"""

from tithe.modules.biformer import BiLevelRoutingAttention
from tithe.modules.cca import CCA
from tithe.modules.focus_detr import FocusEncoder
from tithe.modules.lact import Lact
from tithe.modules.landmark import LandmarkAttention
from tithe.modules.lightning import LightningAttention
from tithe.modules.multi_lane import MultiLane
from tithe.modules.soft import SoftAttention
from tithe.modules.sparseformer import SparseFormer
from tithe.modules.still import Still
from tithe.modules.stprivacy import STPrivacy

__all__ = [
    "CCA",
    "BiLevelRoutingAttention",
    "FocusEncoder",
    "Lact",
    "LandmarkAttention",
    "LightningAttention",
    "MultiLane",
    "STPrivacy",
    "SoftAttention",
    "SparseFormer",
    "Still",
]
