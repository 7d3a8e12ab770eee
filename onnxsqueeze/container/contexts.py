"""Which rows and columns of a plane are spread alike: classes of either by how large their numbers are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.container.tables import Counts, Symbols, cost

__all__ = ["Classes", "classes", "spread"]

WAYS = ((4, 1), (1, 4), (4, 4), (8, 1), (8, 4))
"""How many classes of rows and of columns are tried."""
LEAST = 2048
"""Numbers that a plane needs before classes may pay."""
PAYS = 0.998


@dataclass(frozen=True)
class Classes:
    """A plane as rows × columns, with the class of each; ``counts`` are [row class, column class, 256]."""

    rows: Symbols
    columns: Symbols
    counts: Counts

    def bits(self) -> float:
        """Return about how many bits the plane takes with a table for each pair of classes."""
        r, c, _ = self.counts.shape
        named = len(self.rows) * np.log2(r) + len(self.columns) * np.log2(c) + 8 * r * c
        return float(np.sum(cost(self.counts.reshape(-1, 256))) + named)


def spread(rows: Symbols, columns: Symbols, ways: int) -> Symbols:
    """Return the pair of classes r·ways + c of every number, row by row; ``ways`` is how many classes columns have."""
    return np.asarray((rows * np.uint8(ways))[:, None] + columns[None, :], np.uint8).reshape(-1)


def classes(plane: Symbols, shape: tuple[int, int], modulus: int = 256) -> Classes:
    """Return the classes with which the plane takes the fewest bits, one of either if none pay.

    Rows, and columns, are sorted by the mean distance of their numbers from the commonest, modulo ``modulus``, and cut
    into classes of equal count.
    """
    rows, columns = shape
    counts = np.bincount(plane, minlength=256)
    alike = Classes(np.zeros(rows, np.uint8), np.zeros(columns, np.uint8), counts[None, None])
    least = alike.bits()
    if plane.size < LEAST or min(shape) < 2 or least > 7.9 * plane.size:
        return alike
    away = plane.reshape(shape) - np.uint8(np.argmax(counts))
    sizes = np.minimum(away & np.uint8(modulus - 1), -away & np.uint8(modulus - 1))
    means = sizes.mean(axis=1, dtype=np.float32), sizes.mean(axis=0, dtype=np.float32)
    best = alike
    for r, c in WAYS:
        if (r > 1 and rows < 2 * r) or (c > 1 and columns < 2 * c):
            continue
        by_row, by_column = _quantiles(means[0], r), _quantiles(means[1], c)
        index = (spread(by_row, by_column, c).astype(np.uint16) << 8) | plane
        found = Classes(by_row, by_column, np.bincount(index, minlength=r * c * 256).reshape(r, c, 256))
        if (bits := found.bits()) < PAYS * least:
            best, least = found, bits
    return best


def _quantiles(values: NDArray[np.float32], ways: int) -> Symbols:
    found = np.empty(len(values), np.uint8)
    found[np.argsort(values, kind="stable")] = np.arange(len(values)) * ways // len(values)
    return found
