"""Ranks of figures, to hold predictions against measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["spearman"]


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the correlation of the ranks; equal values share the mean of their ranks."""
    ranks = []
    for side in zip(*pairs, strict=True):
        _, index, counts = np.unique(np.asarray(side, np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[index])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
