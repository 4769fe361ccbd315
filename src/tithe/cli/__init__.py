"""The command line: ``tithe demo | list | show | run | inspect | bench``. Exit codes: 0 done, 1 something failed, 2 bad input."""

from tithe.cli.app import app, main

__all__ = ["app", "main"]
