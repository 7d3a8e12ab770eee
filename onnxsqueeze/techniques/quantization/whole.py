"""Weights as indices of a few levels that are whole numbers, so that the layer still computes in int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.techniques.quantization.grids import TINY
from onnxsqueeze.techniques.quantization.palette import fit

__all__ = ["MOST", "WholeLevels", "on_grid"]

MOST = 64
"""The largest level: the products of two of them with uint8 fit into 16 bits together, where some kernels add them."""


@dataclass(frozen=True)
class WholeLevels:
    """A weight (N, K) as ``scales·levels[indices]``: uint8 indices (N, K), int8 levels, float32 scales (N, 1)."""

    indices: NDArray[np.uint8]
    levels: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def integers(self) -> NDArray[np.int8]:
        """The levels of all weights (N, K)."""
        return self.levels[self.indices]


def on_grid(
    rows: NDArray[np.floating],
    count: int,
    second: NDArray[np.floating] | None = None,
    floor: NDArray[np.floating] | float = 0.0,
) -> WholeLevels:
    """Return a weight ``rows`` (N, K) with ``count`` levels for all rows, each with a scale of its own.

    Scales are at least ``floor``. Levels are those of ``palette.fit`` for rows of the mean square 1, rounded to steps
    of a 64th of the largest; then scales get the least ``(w − s·q) S (w − s·q)ᵀ``, s = w S qᵀ / q S qᵀ, with
    S = ``second`` or I.
    """
    rows = np.asarray(rows, np.float32)
    floor = np.asarray(floor, np.float32)
    spread = np.sqrt(np.mean(rows**2, axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    spread = np.maximum(np.where(spread > 0, spread, 1), 2 * MOST * floor)  # levels of such rows reach 0.5 and more
    found = fit(rows / spread, count, 1, second)
    step = np.abs(found.levels).max() / MOST or np.float32(1)
    levels = np.rint(found.levels[0] / step).astype(np.int8)
    q = levels[found.indices].astype(np.float32)
    image = q if second is None else q @ second.astype(np.float32)
    power, match = (np.sum(image * each, axis=1, keepdims=True, dtype=np.float64) for each in (q, rows))
    scales = np.divide(match, power, out=np.zeros_like(match), where=(power > 0) & (match > 0))  # 0 for rows of zeros
    return WholeLevels(found.indices, levels, np.maximum(scales, np.maximum(floor, TINY)).astype(np.float32))
