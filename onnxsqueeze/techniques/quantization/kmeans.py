"""k-means in one dimension, exactly: clusters of sorted values are runs, and the best cuts are found by dynamics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix

__all__ = ["clusters"]

Indices = NDArray[np.int64]


def clusters(values: Matrix, mass: Matrix, count: int) -> Matrix:
    """Return the means of at most ``count`` clusters of ascending ``values`` with the least ``Σ mass·(v − mean)²``.

    With M_j(i) the most of ``Σ (Σ mass·v)² / Σ mass`` that j clusters of the first i values have,
    ``M_j(i) = max_a M_{j−1}(a) + (Σ mass·v)² / Σ mass`` over values a … i − 1, and what is least is the sum of squares
    less that. The best a never falls as i grows (X. Wu, Optimal quantization by matrix searching, 1991), so that a
    layer of n values takes n·log n steps.
    """
    middle = float(values @ mass) / float(mass.sum())
    held = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * (values - middle))])
    best = np.divide(moment**2, held, out=np.zeros_like(held), where=held > 0)
    cuts: list[Indices] = []
    for _ in range(min(count, len(values)) - 1):
        best, cut = _layer(best, held, moment)
        cuts.append(cut)
    ends = [len(values)]
    for cut in cuts[::-1]:
        ends.append(int(cut[ends[-1]]))
    bounds = np.unique([*ends, 0])
    return np.asarray(np.diff(moment[bounds]) / np.diff(held[bounds]) + middle)


def _layer(before: Matrix, held: Matrix, moment: Matrix) -> tuple[Matrix, Indices]:
    """Return M_j and its best a for every i, given M_{j−1}: every second i lies between the a of its neighbours."""
    size = len(before)
    best, cut = np.zeros(size), np.zeros(size, np.int64)
    stride = 1 << (size - 1).bit_length()
    while stride > 1:
        stride //= 2
        ends = np.arange(stride, size, 2 * stride)
        after = np.minimum(ends + stride, size - 1)
        low = cut[ends - stride]
        high = np.where(ends + stride < size, np.minimum(cut[after], ends), ends)
        lengths = high - low + 1
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        start = np.arange(int(lengths.sum())) - np.repeat(first - low, lengths)
        end = np.repeat(ends, lengths)
        weight, part = held[end] - held[start], moment[end] - moment[start]
        worth = before[start] + np.divide(part**2, weight, out=np.zeros_like(weight), where=weight > 0)
        best[ends] = np.maximum.reduceat(worth, first)
        equal = np.flatnonzero(worth == np.repeat(best[ends], lengths))
        cut[ends] = start[equal[np.searchsorted(equal, first)]]
    return best, cut
