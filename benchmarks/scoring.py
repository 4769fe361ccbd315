"""What scoring costs on the prefill: the same forward with a method attached and without, at 8k tokens, hidden 512."""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import interleaved, llama, ratio, tithe

TOKENS = 8192
METHODS = {
    "keep all (random)": ("random", {"keep": 1.0}),
    "snapkv": ("snapkv", {"keep": 0.1}),
    "h2o": ("h2o", {"keep": 0.1}),
    "preplan-anchor": ("preplan-anchor", {}),
}


def main() -> None:
    """Print one line a method."""
    torch.set_num_threads(1)
    model = llama(layers=2)
    ids = torch.randint(3, 1000, (1, TOKENS), generator=torch.Generator().manual_seed(0))

    def prefill(slug: str | None, params: dict[str, object]) -> Callable[[], None]:
        def go() -> None:
            with torch.no_grad():
                if slug is None:
                    model(input_ids=ids, use_cache=True, logits_to_keep=1)
                    return
                with tithe.on(model, slug, **params) as run, run.prefill():
                    model(input_ids=ids, use_cache=True, logits_to_keep=1)

        return go

    known = tithe.catalogue.factories()
    cases = {"untouched": prefill(None, {})}
    cases |= {name: prefill(slug, params) for name, (slug, params) in METHODS.items() if slug in known}
    times = interleaved(cases, repeats=15)
    for name in cases:
        if name != "untouched":
            print(
                f"prefill + scoring + eviction, {TOKENS} tokens, {name}: {ratio(times, name, 'untouched')} x untouched"
            )


if __name__ == "__main__":
    main()
