"""Means, mean squares and products per channel, added up over feeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["APART", "FEW", "PARTS", "Moments", "apart"]

PARTS = ("gram", "squares", "inverse", "crest", "low", "high")
FEW = 16
"""Rows per column, under which a fit is judged on rows that it has not seen; with more it errs there as on its own."""
APART = 4
"""Of so many feeds one is kept apart to judge by."""


def apart(feed: int) -> bool:
    """Whether the feed of this number is one of those that fits to few rows are judged on: the second of each four."""
    return feed % APART == 1


@dataclass
class Moments:
    """``n``, ``Σx`` (K) over rows x in float64, with ``Σxxᵀ`` (K×K) for Gram.

    For Channels: ``squares`` is ``Σ x²/‖x‖²``, so that a few huge rows do not outweigh all others, ``inverse`` is
    ``Σ 1/‖x‖²``, ``crest`` ``Σ max|x|²/‖x‖²``, and ``low`` and ``high`` are the extremes per channel; ``gram`` is the
    mean of ``xxᵀ/‖x‖²`` over some of the rows times n. ``runs`` is the number of feeds. ``held`` are the moments over
    the feeds that are ``apart`` alone, where Gram has under ``FEW`` rows per column.
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
    held: Moments | None = None

    @property
    def few(self) -> bool:
        """Whether fits to these rows are to be judged on others."""
        return self.n < FEW * len(self.total)

    def parts(self) -> tuple[Moments, Moments] | None:
        """Return the moments over the feeds that are not apart and over those that are; None if there are none such."""
        held = self.held
        if held is None or self.gram is None or held.gram is None or not self.few or not 0 < held.n < self.n:
            return None
        rest = Moments(self.n - held.n, self.total - held.total, self.gram - held.gram, runs=self.runs - held.runs)
        return rest, held

    @property
    def mean(self) -> NDArray[np.float64]:
        """μ = Σx / n."""
        return self.total / max(self.n, 1)

    @property
    def second(self) -> NDArray[np.floating]:
        """Σxxᵀ / n, uncentred."""
        assert self.gram is not None
        return self.gram / max(self.n, 1)

    def about(self, centre: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ(x − c)(x − c)ᵀ / n about a centre c."""
        cross = np.outer(self.mean, centre)
        return np.asarray(self.second - cross - cross.T + np.outer(centre, centre), np.float64)

    def add(self, other: Moments) -> None:
        """Add the moments of further rows, in place; products, where ``other`` has none, stay as they are."""
        if other.held is not None:
            if self.held is None:
                self.held = other.held
            else:
                self.held.add(other.held)
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

        held = self.held.merge(other.held) if self.held and other.held else self.held or other.held
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
            held,
        )
