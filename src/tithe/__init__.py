"""Tithe finds the tokens that matter, and makes a transformer pay only for those."""

from tithe.flow import Run, method, on

__all__ = ["Run", "method", "on"]
