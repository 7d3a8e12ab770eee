"""Second moments from few rows: the one estimator that all fits go by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix

__all__ = ["shrunk"]


def shrunk(second: NDArray[np.floating], rows: float) -> Matrix:
    """Return second moments drawn towards simpler ones by as much as few rows leave them uncertain.

    ``S* = (1 − α)·S + α·diag(S)`` off the diagonal, and ``(1 − β)·s_ii + β·mean(s_ii)`` on it: a channel that stood
    still in a few rows may yet move. Closest to the true moments in expected squared distance are
    ``α = Σ Var(s_ij) / Σ s_ij²`` over i ≠ j and ``β = Σ Var(s_ii) / Σ (s_ii − mean)²`` (Ledoit and Wolf, 2004, with the
    targets of Schäfer and Strimmer, 2005, and of Opgen-Rhein and Strimmer, 2007), where for normal rows
    ``Var(s_ij) = (s_ii·s_jj + s_ij²)/n``, as in Chen et al., 2010. Both are 1 at a single row and next to nothing with
    many, α about ``(tr S)² / ‖S‖² / n`` and β about 2/n. Where a channel's own moment falls, so do those that it shares
    with others, by its root: what is returned stays positive semidefinite.
    """
    variance = np.maximum(np.diag(second).astype(np.float64), 0.0)  # of what stands still, rounding is left
    square = float((variance**2).sum())
    squares = max(float(np.einsum("ij,ij->", second, second, dtype=np.float64)) - square, 0.0)
    products = float(variance.sum() ** 2) - square
    mean = float(variance.mean()) if len(variance) else 0.0
    between = square - len(variance) * mean**2
    alpha = min((products + squares) / max(rows * squares, 1e-300), 1.0)
    beta = min(2 * square / max(rows * between, 1e-300), 1.0)
    own = (1 - beta) * variance + beta * mean
    less = np.sqrt(np.minimum(np.divide(own, variance, out=np.ones_like(own), where=variance > 0), 1.0))
    drawn = np.asarray(second, np.float64) * (1 - alpha) * less * less[:, None]
    drawn[np.diag_indices_from(drawn)] = own
    return drawn
