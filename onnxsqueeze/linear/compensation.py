"""Rounding weights so that the errors of neighbours cancel on the inputs that really occur, whatever the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "Feedback", "feedback", "rounded"]

Floats = NDArray[np.floating]

BLOCK = 64
DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that inputs that were hardly seen move no weight far."""
LARGEST = 2304
"""Weights with more rows are rounded to nearest: the cost grows with their cube."""


@dataclass(frozen=True)
class Feedback:
    """``S + λI = U D Uᵀ`` for S in the order of falling S_kk: that order, U unit upper triangular, D over its mean.

    D_k is what an error of row k costs that those after it make up for.
    """

    order: NDArray[np.int64]
    upper: NDArray[np.float32]
    share: NDArray[np.float32]


def feedback(second: Floats, damping: float = DAMPING, together: int = 1) -> Feedback:
    """Return how the errors of rounded rows are passed on, for inputs with S = E[xxᵀ]; λ is ``damping``·tr(S)/K.

    U is the Cholesky factor of S back to front. So many rows that lie ``together`` stay so, in the order of their sums.
    """
    firsts = np.argsort(-np.diag(second).reshape(-1, together).sum(axis=1), kind="stable") * together
    order = np.asarray((firsts[:, None] + np.arange(together)).reshape(-1), np.int64)
    second = second[np.ix_(order, order)]
    mean = float(np.trace(second)) / len(second) or 1.0
    damped = np.asarray(second[::-1, ::-1] / mean, np.float32)
    damped.flat[:: len(damped) + 1] += np.float32(damping)
    try:
        factor = np.linalg.cholesky(damped)[::-1, ::-1]
    except np.linalg.LinAlgError:  # a few inputs outweigh all others by more than float32 resolves
        factor = np.linalg.cholesky(damped.astype(np.float64))[::-1, ::-1]
    scale = np.diag(factor)
    share = scale.astype(np.float64) ** 2
    return Feedback(order, np.asarray(factor / scale, np.float32), np.asarray(share / share.mean(), np.float32))


def rounded(weight: Floats, back: Feedback, choose: Callable[[int, Floats], Floats], together: int = 1) -> None:
    """Let ``choose(k, target)`` round the rows of a weight (K, N) one after the other, in the order of ``back``.

    It gets the row's place in that order and what should stand there, and returns what does. Each row makes up for
    what those before it have lost: with ``S = U D Uᵀ`` its target is ``w_k + Σ_{j<k} U_jk·(w_j − ŵ_j)``, so that
    ``tr (W − Ŵ)ᵀ S (W − Ŵ)`` is the sum of D_k times the squares of plain rounding errors. After GPTQ (Frantar et al.
    2023), in the form of QuIP (Chee et al. 2023), which inverts nothing. With ``together`` > 1 so many rows are
    chosen at once, a divisor of 64: k is the first of them, and no target makes up for what others of them lose.
    """
    upper = back.upper
    rows = weight[back.order].astype(np.float32)
    lost = np.zeros_like(rows)
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        wanted = rows[start:stop] + upper[:start, start:stop].T @ lost[:start]
        for k in range(start, stop, together):
            part: Any = k if together == 1 else slice(k, k + together)
            inside: Any = k - start if together == 1 else slice(k - start, k - start + together)
            target = wanted[inside] + upper[start:k, part].T @ lost[start:k]
            lost[part] = rows[part] - choose(k, target)
