"""Histograms whose width doubles, so that they need not know the range beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd, isqrt, prod

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Array, ordinary

__all__ = ["BINS", "SAMPLE", "Histogram", "stride"]

BINS = 4096
SAMPLE = 1 << 14
"""About this many elements of one tensor of one feed enter its histogram at most, evenly strided; minima are exact."""


@dataclass
class Histogram:
    """Counts of the non-zero values of a tensor in 4096 bins over ``[−T, T)``, T a power of two.

    When a value outside arrives, T doubles and neighbouring bins are added, so merging is exact and the order of
    the feeds does not matter.
    """

    exponent: int = -126
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    zeros: int = 0
    low: float = 0.0
    high: float = 0.0
    samples: int = 0
    low_sum: float = 0.0
    high_sum: float = 0.0
    elements: int = 0
    masked: int = 0

    @property
    def limit(self) -> float:
        """T: half the width of the histogram."""
        return float(2.0**self.exponent)

    def update(self, values: Array) -> None:
        """Add one feed's values; infinite, NaN and mask-like ones are left out."""
        flat = values.reshape(-1)
        usual = ordinary(flat)
        if usual is not None:
            flat = flat[usual]
            self.masked += usual.size - flat.size
        if flat.size:
            self.extend(float(flat.min()), float(flat.max()), flat.size)
            self.count(flat[:: stride(values.shape)])

    def extend(self, low: float, high: float, elements: int) -> None:
        """Widen the histogram to one feed's extremes, none of which is infinite, NaN or mask-like."""
        self.elements += elements
        first = self.samples == 0
        self.low, self.high = (low, high) if first else (min(self.low, low), max(self.high, high))
        self.samples += 1
        self.low_sum += low
        self.high_sum += high
        self._grow(max(abs(low), abs(high)))

    def count(self, sample: Array) -> None:
        """Count values that lie within the extremes seen so far."""
        # times a power of two, then floor: exact, so that a value's bins at two widths always agree; below 2**-100 that
        # would overflow in float32, and over 2**11 it could underflow
        narrow = sample.dtype == np.float32 and -100 < self.exponent < 12
        kind = np.float32 if narrow else np.float64
        index = np.floor(sample.astype(kind, copy=False) * kind(BINS / (2 * self.limit)))
        index += BINS // 2
        zeros = sample.size - int(np.count_nonzero(sample))
        self.counts += np.bincount(index.astype(np.intp), minlength=BINS)
        self.counts[BINS // 2] -= zeros
        self.zeros += zeros

    def _grow(self, reach: float) -> None:
        needed = int(np.frexp(reach)[1]) if reach > 0 else self.exponent
        if needed <= self.exponent:
            return
        if self.counts.any():
            while self.exponent < needed:
                middle = self.counts.reshape(-1, 2).sum(1)
                self.counts = np.zeros(BINS, np.int64)
                self.counts[BINS // 4 : 3 * BINS // 4] = middle
                self.exponent += 1
        else:
            self.exponent = needed

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of both; exact and commutative."""
        if not other.samples or not self.samples:
            return self if self.samples else other
        one, two = (Histogram(h.exponent, h.counts.copy()) for h in (self, other))
        for histogram in (one, two):
            histogram._grow(np.ldexp(0.5, max(self.exponent, other.exponent)))
        return Histogram(
            max(self.exponent, other.exponent),
            one.counts + two.counts,
            self.zeros + other.zeros,
            min(self.low, other.low),
            max(self.high, other.high),
            self.samples + other.samples,
            self.low_sum + other.low_sum,
            self.high_sum + other.high_sum,
            self.elements + other.elements,
            self.masked + other.masked,
        )


def stride(shape: Sequence[int], count: int = SAMPLE) -> int:
    """Return the distance at which about ``count`` elements of a tensor are taken.

    It shares no factor with any dimension: else only some columns, or some channels, would ever be seen. It is prime,
    so that it seldom shares one with the dimensions that the tensor has in another feed either.
    """
    step = max(prod(shape) // count, 1)
    while any(gcd(step, size) > 1 for size in shape) or any(step % d == 0 for d in range(2, isqrt(step) + 1)):
        step += 1
    return step
