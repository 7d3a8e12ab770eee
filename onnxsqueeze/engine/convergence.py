"""When further feeds no longer change what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.partial import Partial

__all__ = ["Convergence"]

CHUNKS = 8
"""Chunks over which nothing may move."""
SIZES = 1e-3
"""By how much the width of a range and the trace of second moments may move: relative."""
DIRECTIONS = 1e-2
"""By how much second moments may move: ``‖S − S₀‖/‖S₀‖`` in the Frobenius norm, the same of means by the deviation."""


@dataclass
class Convergence:
    """Compares what is known after every eighth chunk with what was known eight chunks before."""

    before: Statistics | None = None

    def after(self, chunks: int, part: Partial) -> bool:
        """Return whether nothing has moved, with ``part`` knowing the first ``chunks`` chunks and no others."""
        if chunks % CHUNKS:
            return False
        now, before = part.so_far(), self.before
        self.before = now
        return before is not None and _stands(before, now)


def _stands(before: Statistics, now: Statistics) -> bool:
    if before.ranges.keys() != now.ranges.keys() or before.moments.keys() != now.moments.keys():
        return False
    for need, histogram in now.ranges.items():
        old = before.ranges[need]
        if (histogram.high - histogram.low) - (old.high - old.low) > SIZES * (histogram.high - histogram.low):
            return False
    return all(_similar(before.moments[need], moments) for need, moments in now.moments.items())


def _similar(old: Moments, new: Moments) -> bool:
    if new.low is not None and new.high is not None and old.low is not None and old.high is not None:
        width = float(np.max(new.high - new.low, initial=0.0))
        moved = np.maximum(new.high - old.high, old.low - new.low)
        if float(np.max(moved, initial=0.0)) > SIZES * width:
            return False
    if new.gram is None or old.gram is None:
        size = float(np.abs(new.mean).max(initial=0.0))
        return float(np.abs(new.mean - old.mean).max(initial=0.0)) <= DIRECTIONS * size
    one, two = old.second, new.second
    trace = float(np.trace(two))
    if abs(trace - float(np.trace(one))) > SIZES * trace:
        return False
    return float(np.linalg.norm(two - one)) <= DIRECTIONS * float(np.linalg.norm(two))
