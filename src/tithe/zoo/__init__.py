"""The models embedded in the package, and the loader that the command line uses for any checkpoint."""

from tithe.zoo.loader import NAMES, Loaded, load, load_model

__all__ = ["NAMES", "Loaded", "load", "load_model"]
