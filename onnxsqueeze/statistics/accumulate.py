"""What arrives from the feeds, added up: samples and rows are pooled, so that each step is worth its call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import ordinary
from onnxsqueeze.statistics.histogram import Histogram
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import FEW, Moments, apart
from onnxsqueeze.statistics.needs import Channels, Gram, Mean, Need, Range

__all__ = ["Accumulator", "input_rows", "patches"]

Array = NDArray[np.generic]

POOLED_SAMPLES = 1 << 13
"""Samples of one tensor that are counted at once."""
POOLED_ROWS = 256
"""Rows that enter a Gram matrix at once."""
ROWS = 1024
"""Rows from all feeds, or twice as many as there are channels, that enter the Gram matrix of relative rows."""


@dataclass
class Accumulator:
    """Statistics under way over ``feeds`` feeds, of which about ``rows`` rows enter one Gram matrix.

    They are complete after ``finish``. What waits to be added is bounded: 8192 samples of a tensor, 256 rows of a Gram
    matrix.
    """

    feeds: int
    rows: int
    statistics: Statistics = field(default_factory=Statistics)
    _samples: dict[Range, list[Array]] = field(default_factory=dict)
    _rows: dict[Channels, list[NDArray[np.float32]]] = field(default_factory=dict)
    _inputs: dict[Gram, list[Array]] = field(default_factory=dict)
    _last: dict[Gram, int] = field(default_factory=dict)

    def add(self, need: Need, value: Array, rng: np.random.Generator, feed: int, rows: Gram | None = None) -> None:
        """Add what a need wants to know of the whole tensor of the feed of a number.

        Of a Gram that stands for several tensors, ``rows`` says how to read this one.
        """
        if isinstance(need, Range):
            self.statistics.ranges.setdefault(need, Histogram()).update(value)
        elif isinstance(need, Mean):
            self._add_moments(need, _means(value, need.axis))
        elif isinstance(need, Channels):
            found, relative = _channels(value, need, self.feeds, rng)
            self._add_moments(need, found)
            if need.gram:
                self._rows.setdefault(need, []).append(relative)
                if sum(map(len, self._rows[need])) >= POOLED_ROWS:
                    self._multiply(need)
        else:
            taken = _inputs(value, rows or need, max(64, self.rows // self.feeds), rng)
            waiting = self._inputs.setdefault(need, [])
            if self._last.get(need) == feed:
                waiting[-1] = np.concatenate([waiting[-1], taken])
                return
            if sum(map(len, waiting)) >= POOLED_ROWS:
                self._correlate(need)
            self._inputs.setdefault(need, []).append(taken)
            self._last[need] = feed

    def add_reduced(self, need: Range | Mean, low: float, high: float, size: int, part: Mapping[str, Array]) -> None:
        """Add a tensor of one feed that was reduced to its extremes, its ``sample`` and its ``mean`` by channels."""
        if isinstance(need, Range):
            self.statistics.ranges.setdefault(need, Histogram()).extend(low, high, size)
            waiting = self._samples.setdefault(need, [])
            waiting.append(part["sample"])
            if sum(sample.size for sample in waiting) >= POOLED_SAMPLES:
                self._count(need)
            return
        mean = part["mean"].astype(np.float64)
        count = size // max(mean.size, 1)
        self._add_moments(need, Moments(count, mean * count))

    def finish(self) -> Statistics:
        """Add what still waits, and return the statistics."""
        for need in list(self._samples):
            self._count(need)
        for channels in list(self._rows):
            self._multiply(channels)
        for gram in list(self._inputs):
            self._correlate(gram)
        return self.statistics

    def _add_moments(self, need: Mean | Channels | Gram, found: Moments) -> None:
        old = self.statistics.moments.get(need)
        if old is not None:
            old.add(found)
            return
        if found.gram is not None:
            found.gram = found.gram.astype(np.float64)
        self.statistics.moments[need] = found

    def _count(self, need: Range) -> None:
        if waiting := self._samples.pop(need):
            self.statistics.ranges[need].count(np.concatenate(waiting) if len(waiting) > 1 else waiting[0])

    def _multiply(self, need: Channels) -> None:
        waiting = self._rows.pop(need)
        rows = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        moments = self.statistics.moments[need]
        if moments.gram is None:
            moments.gram = rows.T @ rows
        else:
            moments.gram += rows.T @ rows

    def _correlate(self, need: Gram) -> None:
        """Add the products of the rows that wait; of those of feeds that are apart by themselves as well."""
        waiting = self._inputs.pop(need)
        old = self.statistics.moments.get(need)
        start = 0 if old is None else old.runs
        found = _products(waiting)
        held = [rows for i, rows in enumerate(waiting, start) if apart(i)]
        if held and found.n * self.feeds < FEW * len(found.total) * len(waiting):
            found.held = _products(held)
            assert found.held.gram is not None
            found.held.gram = found.held.gram.astype(np.float64)
        self._add_moments(need, found)


def _means(value: Array, axis: int) -> Moments:
    """Return the moments per index of ``axis``; a mask or an infinity counts as the mean of the others."""
    other = tuple(a for a in range(value.ndim) if a != axis % value.ndim)
    count = value.size // max(value.shape[axis], 1)
    usual = ordinary(value)
    if usual is None:
        return Moments(count, value.sum(axis=other, dtype=np.float64))
    sums = np.where(usual, value, 0).sum(axis=other, dtype=np.float64)
    return Moments(count, sums * count / np.maximum(usual.sum(axis=other), 1))


def _channels(
    value: Array, need: Channels, feeds: int, rng: np.random.Generator
) -> tuple[Moments, NDArray[np.float32]]:
    """Return the moments that Channels asks for, and rows whose products make its Gram matrix.

    A mask or an infinity counts as zero. The matrix is ``Σ xxᵀ/‖x‖²`` over all rows as the mean over some of them says.
    """
    limit = -(-max(2 * value.shape[need.axis], ROWS) // feeds)
    x = np.moveaxis(value, need.axis, -1).reshape(-1, value.shape[need.axis])
    usual = ordinary(x)
    x = x if usual is None else np.where(usual, x, 0)
    low, high = x.min(0, initial=0.0), x.max(0, initial=0.0)
    reach = max(-low.min(initial=0.0), high.max(initial=0.0))
    rows = x.astype(np.float32 if reach < 1e15 else np.float64, copy=False)  # squares of float32 end at 1e38
    squares = rows * rows
    norms = squares.sum(axis=1)
    weights = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    found = Moments(
        len(rows),
        rows.sum(0, dtype=np.float64),
        squares=(weights @ squares).astype(np.float64),
        inverse=weights.sum(keepdims=True, dtype=np.float64),
        crest=(weights * squares.max(1, initial=0.0)).sum(keepdims=True, dtype=np.float64),
        low=low.astype(np.float64),
        high=high.astype(np.float64),
    )
    if not need.gram:
        return found, np.zeros((0, rows.shape[1]), np.float32)
    count = len(rows)
    if count > limit:
        chosen = np.sort(rng.choice(count, limit, replace=False))
        rows, weights = rows[chosen], weights[chosen]
    return found, (rows * np.sqrt(weights * (count / max(len(rows), 1)))[:, None]).astype(np.float32)


def _inputs(value: Array, need: Gram, rows: int, rng: np.random.Generator) -> Array:
    """Return up to ``rows`` rows that are to be multiplied; a mask or an infinity counts as zero."""
    x = input_rows(value, need, rows, rng)
    usual = ordinary(x)
    x = x if usual is None else np.where(usual, x, 0)
    return x.astype(np.float32 if np.abs(x).max(initial=0) < 1e15 else np.float64)  # squares of float32 end at 1e38


def _products(feeds: Sequence[Array]) -> Moments:
    """Return the moments of the rows of some feeds."""
    x = np.concatenate(feeds) if len(feeds) > 1 else feeds[0]
    return Moments(len(x), x.sum(0, dtype=np.float64), x.T @ x, runs=len(feeds))


def input_rows(value: Array, need: Gram, rows: int, rng: np.random.Generator) -> Array:
    """Return up to ``rows`` input rows of a linear operator; which ones depends on their number and ``rng`` alone."""
    if need.kernel:
        return patches(value, need, rows, rng)
    count = value.shape[need.axis]
    flat = np.moveaxis(value, need.axis, -1).reshape(value.size // max(count, 1), count)
    return flat if len(flat) <= rows else flat[np.sort(rng.choice(len(flat), rows, replace=False))]


def patches(value: Array, need: Gram, rows: int, rng: np.random.Generator) -> Array:
    """Return up to ``rows`` im2col patches of ``value`` (N, C, *spatial) as an array (rows, C·Πkernel)."""
    dims = len(need.kernel)
    strides, dilations = need.strides or (1,) * dims, need.dilations or (1,) * dims
    size = value.shape[2:]
    extent = [(k - 1) * d + 1 for k, d in zip(need.kernel, dilations, strict=True)]
    if need.auto_pad:
        total = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, strides, extent, strict=True)]
        small, big = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (small, big) if need.auto_pad == "SAME_UPPER" else (big, small)
    else:
        pads = need.pads or (0,) * 2 * dims
        begin, end = list(pads[:dims]), list(pads[dims:])
    out = [(n + b + e - x) // s + 1 for n, b, e, x, s in zip(size, begin, end, extent, strides, strict=True)]
    count = len(value) * prod(out)
    chosen = np.arange(count) if count <= rows else np.sort(rng.choice(count, rows, replace=False))
    # with the channels last what a tap reads stands side by side in memory
    grid = [n + b + e for n, b, e in zip(size, begin, end, strict=True)]
    padded = np.zeros((len(value), *grid, value.shape[1]), value.dtype)
    inside = (slice(None), *(slice(b, b + n) for n, b in zip(size, begin, strict=True)))
    padded[inside] = np.moveaxis(value, 1, -1)
    first, *where = np.unravel_index(chosen, (len(value), *out))
    taps = np.zeros(1, np.int64)
    for axis in range(dims):
        first = first * grid[axis] + where[axis] * strides[axis]
        taps = (taps[:, None] * grid[axis] + np.arange(need.kernel[axis]) * dilations[axis]).reshape(-1)
    taken: Array = padded.reshape(-1, value.shape[1])[first[:, None] + taps]
    return np.ascontiguousarray(taken.transpose(0, 2, 1)).reshape(len(chosen), -1)
