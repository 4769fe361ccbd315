"""``python -m tithe.harness lm_eval ...``: a harness's own command line, with the model ``tithe`` known to it."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable

from tithe.errors import BadInput, TitheError, unknown


def _language() -> None:
    importlib.import_module("tithe.harness.language")


def _pictures() -> None:
    from tithe.harness.manifest import manifest

    registry = importlib.import_module("lmms_eval.models").MODEL_REGISTRY_V2
    registry.register_manifest(manifest(), overwrite=True)


HARNESSES: dict[str, Callable[[], None]] = {"lm_eval": _language, "lmms_eval": _pictures}


def main(argv: list[str]) -> int:
    """Run the harness named first in ``argv`` with the rest; return its exit code, 2 for bad input."""
    try:
        if not argv or argv[0] not in HARNESSES:
            raise unknown("harness", argv[0] if argv else "", HARNESSES)
        try:
            HARNESSES[argv[0]]()
        except ModuleNotFoundError as error:
            raise BadInput(
                f"{argv[0]} cannot be imported ({error}): see docs/harness.md for its installation."
            ) from error
        sys.argv = [argv[0], *argv[1:]]
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except TitheError as error:
        print(f"tithe: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
