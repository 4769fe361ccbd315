"""Tithe finds the tokens that matter, and makes a transformer pay only for those."""

from importlib import import_module
from types import ModuleType

from tithe.catalogue import card, factories
from tithe.check import check_host, check_method
from tithe.errors import BadInput, Refused, ScoreError, TitheError
from tithe.explanation import Explanation, explain
from tithe.flow import Run, attach, method, on
from tithe.handover import EncodedImage, EncodedImages, encode_images
from tithe.profiles import Profile, profile
from tithe.seams.saving import load_cache, save_cache
from tithe.shorten import Shortened, shorten
from tithe.trace import Event, Report, Trace

__version__ = "0.1.0"

_ROOMS = ("bench", "frames", "page", "zoo")

__all__ = [
    "BadInput",
    "EncodedImage",
    "EncodedImages",
    "Event",
    "Explanation",
    "Profile",
    "Refused",
    "Report",
    "Run",
    "ScoreError",
    "Shortened",
    "TitheError",
    "Trace",
    "attach",
    "card",
    "check_host",
    "check_method",
    "encode_images",
    "explain",
    "factories",
    "load_cache",
    "method",
    "on",
    "profile",
    "save_cache",
    "shorten",
]


def __getattr__(name: str) -> ModuleType:
    """Import a room when it is first asked for."""
    if name in _ROOMS:
        return import_module(f"tithe.{name}")
    raise AttributeError(f"module 'tithe' has no attribute {name!r}")
