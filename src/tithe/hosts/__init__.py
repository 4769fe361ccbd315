"""Declarative adapters of model families: towers, layers, image tokens, grids, tails of blocks. No method's name."""

from tithe.hosts.base import Host, Tail, Vision, find

__all__ = ["Host", "Tail", "Vision", "find"]
