"""Means, mean squares and products per channel, added up over feeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTS", "Moments"]

PARTS = ("gram", "squares", "inverse", "crest", "low", "high")


@dataclass
class Moments:
    """``n``, ``Σx`` (K) over rows x in float64, with ``Σxxᵀ`` (K×K) for Gram.

    For Channels: ``squares`` is ``Σ x²/‖x‖²``, so that a few huge rows do not outweigh all others, ``inverse`` is
    ``Σ 1/‖x‖²``, ``crest`` ``Σ max|x|²/‖x‖²``, and ``low`` and ``high`` are the extremes per channel; ``gram`` is the
    mean of ``xxᵀ/‖x‖²`` over some of the rows times n. ``runs`` is the number of feeds.
    """

    n: int
    total: NDArray[np.float64]
    gram: NDArray[np.floating] | None = None
    squares: NDArray[np.float64] | None = None
    inverse: NDArray[np.float64] | None = None
    crest: NDArray[np.float64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    runs: int = 1

    @property
    def mean(self) -> NDArray[np.float64]:
        """μ = Σx / n."""
        return self.total / max(self.n, 1)

    @property
    def second(self) -> NDArray[np.floating]:
        """Σxxᵀ / n, uncentred."""
        assert self.gram is not None
        return self.gram / max(self.n, 1)

    def add(self, other: Moments) -> None:
        """Add the moments of further rows, in place; products, where ``other`` has none, stay as they are."""
        self.n += other.n
        self.runs += other.runs
        self.total += other.total
        for part in PARTS:
            mine, more = getattr(self, part), getattr(other, part)
            if mine is not None and more is not None:
                {"low": np.minimum, "high": np.maximum}.get(part, np.add)(mine, more, out=mine)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows."""

        def both(one: NDArray[np.floating] | None, two: NDArray[np.floating] | None, how: np.ufunc) -> Any:
            return None if one is None or two is None else how(one, two)

        return Moments(
            self.n + other.n,
            self.total + other.total,
            both(self.gram, other.gram, np.add),
            both(self.squares, other.squares, np.add),
            both(self.inverse, other.inverse, np.add),
            both(self.crest, other.crest, np.add),
            both(self.low, other.low, np.minimum),
            both(self.high, other.high, np.maximum),
            self.runs + other.runs,
        )
