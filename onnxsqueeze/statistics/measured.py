"""Statistics of activations: what they are, how they merge, and the one sweep over the feeds that gathers them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from onnxsqueeze.statistics.histogram import Histogram
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.needs import Channels, Gram, Mean, Need, Range

__all__ = ["Statistics"]

Progress = Callable[[str, int, int], None]


@dataclass
class Statistics:
    """What one sweep has measured, by the need that asked for it. Empty when there are no feeds."""

    ranges: dict[Range, Histogram] = field(default_factory=dict)
    moments: dict[Mean | Channels | Gram, Moments] = field(default_factory=dict)
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a pass has computed from them, for the next time that it plans; the engine empties it after the pass."""

    def __bool__(self) -> bool:
        return bool(self.ranges or self.moments)

    def range(self, tensor: str) -> Histogram | None:
        """Return the histogram of a tensor, None if it was not measured or held no ordinary value."""
        found = self.ranges.get(Range(tensor))
        return found if found is not None and found.samples else None

    def of(self, need: Mean | Channels | Gram) -> Moments | None:
        """Return the moments that answer a need, of all tensors of a Gram; None if nothing was measured."""
        found = self.moments.get(need)
        if found is None and isinstance(need, Gram) and need.others:
            known = [moments for each in need.each if (moments := self.of(each)) is not None]
            return reduce(Moments.merge, known) if known else None
        return found if found is not None and found.n else None

    def missing(self, needs: Iterable[Need]) -> list[Need]:
        """Return the needs that nothing here answers."""
        return [n for n in needs if n not in (self.ranges if isinstance(n, Range) else self.moments)]

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sweeps."""
        merged = Statistics(dict(self.ranges), dict(self.moments))
        for wanted, histogram in other.ranges.items():
            merged.ranges[wanted] = merged.ranges[wanted].merge(histogram) if wanted in merged.ranges else histogram
        for need, moments in other.moments.items():
            merged.moments[need] = merged.moments[need].merge(moments) if need in merged.moments else moments
        return merged
