"""The command line: ``tithe demo | list | show | run | inspect | bench``.

Exit codes: 0 done; 1 ran, but something failed or was refused on the way; 2 bad input, and nothing was written.
"""

from tithe.cli.app import app, main

__all__ = ["app", "main"]
