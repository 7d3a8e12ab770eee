"""Rounding weights to integers so that the errors of neighbouring weights cancel on the inputs that really occur."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.targets.pairs import LIMIT

__all__ = ["LARGEST", "compensated", "feedback"]

Floats = NDArray[np.floating]

BLOCK = 64
DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that inputs that were hardly seen move no weight far."""
LARGEST = 2304
"""Weights with more rows are rounded to nearest: the cost grows with their cube."""


def compensated(
    weight: Floats,
    scales: Floats,
    back: NDArray[np.float32],
    *,
    pairs: bool = False,
    limits: tuple[int, int] = (-127, 127),
) -> NDArray[np.int8]:
    """Return integers q with ``weight ≈ scales·q`` within ``limits`` that make ``tr (W − sq)ᵀ S (W − sq)`` small.

    ``weight`` and ``scales`` broadcast to (K, N); ``back`` is what ``feedback`` makes of ``S = E[xxᵀ]`` of the inputs.
    Rows are rounded in the order of falling S_kk, and each makes up for what those before it have lost: with
    ``S = U D Uᵀ``, U being unit upper triangular, ``q_k = round((w_k + Σ_{j<k} U_jk·(w_j − s·q_j)) / s)``. The errors
    times U are then plain rounding errors. After GPTQ (Frantar et al. 2023), in the form of QuIP (Chee et al. 2023),
    which inverts nothing. With ``pairs`` no two neighbours of one sign, rows 2j and 2j + 1, are over ``LIMIT``
    together (see ``onnxsqueeze.targets.pairs``); what is cut off one of them is made up for like all that is lost.
    """
    order, upper = back[-1].astype(np.int64), back[:-1]
    scale = np.broadcast_to(scales, weight.shape)[order].astype(np.float32)
    rows = weight[order].astype(np.float32)
    lost = np.zeros_like(rows)
    found = np.empty(weight.shape, np.int8)
    places = np.argsort(order)
    partners = np.append(places, [-1])[np.minimum(order ^ 1, len(order))]  # where the neighbour's turn is
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        wanted = rows[start:stop] + upper[:start, start:stop].T @ lost[:start]
        for k in range(start, stop):
            target = wanted[k - start] + upper[start:k, k] @ lost[start:k]
            target = target / scale[k]
            room: tuple[Any, Any] = np.float32(limits[0]), np.float32(limits[1])
            if pairs and partners[k] >= 0:
                room = _room(target, rows, scale, found, order, k, int(partners[k]))
            q = np.clip(np.rint(target), *room)
            found[order[k]] = q
            lost[k] = rows[k] - q * scale[k]
    return found


def _room(
    target: Floats, rows: Floats, scale: Floats, found: NDArray[np.int8], order: NDArray[np.int64], k: int, other: int
) -> tuple[Any, Any]:
    """Return what a row of integers may be: what its neighbour leaves, or half of what both want too much."""
    if other < k:
        q = found[order[other]].astype(np.int32)
        return np.maximum(-127, -LIMIT - np.minimum(q, 0)), np.minimum(127, LIMIT - np.maximum(q, 0))
    neighbour = rows[other] / scale[other]
    over = np.abs(target) + np.abs(neighbour) - LIMIT
    cut = np.where((target * neighbour > 0) & (over > 0), np.floor(np.abs(target) - over / 2), 127)
    return np.maximum(-127, -cut), np.minimum(127, cut)


def feedback(second: Floats) -> NDArray[np.float32]:
    """Return the unit upper triangular U of ``S + λI = U D Uᵀ`` for S in the order of falling S_kk, and that order.

    U is the Cholesky factor of S back to front; the order is a last row.
    """
    order = np.argsort(-np.diag(second), kind="stable")
    second = second[np.ix_(order, order)]
    mean = float(np.trace(second)) / len(second) or 1.0
    damped = np.asarray(second[::-1, ::-1] / mean, np.float32)
    damped.flat[:: len(damped) + 1] += np.float32(DAMPING)
    try:
        factor = np.linalg.cholesky(damped)[::-1, ::-1]
    except np.linalg.LinAlgError:  # a few inputs outweigh all others by more than float32 resolves
        factor = np.linalg.cholesky(damped.astype(np.float64))[::-1, ::-1]
    return np.concatenate([factor / np.diag(factor), order[None]]).astype(np.float32)
