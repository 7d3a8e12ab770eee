"""Weights that are only stored must not slow the model down: those of which the clock is sure stay in float."""

from __future__ import annotations

from collections.abc import Sequence

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.techniques.quantization.apply import Quantized, quantize_site

__all__ = ["unslowed"]

LIMIT = 1.02
"""A measured run time over that of the float graph from which stored weights are taken back."""
SECONDS = 0.2
"""Processor seconds that one comparison takes."""
TRIALS = 12
"""How many comparisons find the weights that slow the model down."""
SLOWS = "restoring it was measured and slows the model down by more than 2 %"


def unslowed(plan: Sequence[Site[Quantized] | Skip], bench: Bench) -> list[Site[Quantized] | Skip]:
    """Return the plan without the stored weights that make the model slower than it was, by more than ``LIMIT``.

    They are looked for by halves. If all is as fast as it was, as it should be, that takes one comparison.
    """
    sites = [entry for entry in plan if isinstance(entry, Site)]
    left: set[str] = set()

    def slows(keys: set[str]) -> bool:
        chosen = [site for site in sites if site.key in keys]
        return bool(chosen) and bench.latency(bench.variant(quantize_site, chosen), LIMIT, SECONDS) > LIMIT

    parts = [[site.key for site in sites]] if slows({site.key for site in sites}) else []
    trials = 1
    while parts:
        part = parts.pop()
        if len(part) == 1 or trials >= TRIALS:
            left.update(part)
            continue
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            trials += 1
            if slows(set(half)):
                parts.append(half)
    return [Skip(entry.key, SLOWS) if entry.key in left else entry for entry in plan]
