"""Integers that no x86-64 processor adds up wrongly: neighbouring weights whose products fit in 16 bits together.

Without VNNI a processor multiplies uint8 activations by int8 weights in pairs and adds each pair in 16 bits, which
saturate. Two neighbours of one sign are right for every activation if ``255·(|q_a| + |q_b|) ≤ 32767``, which is
``|q_a| + |q_b| ≤ 128``; neighbours of opposite signs always are. Neighbours are 2j and 2j + 1 in the order in which a
kernel adds up: along K for MatMul and Gemm, along (tap, input channel of the group) for Conv.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "excess", "limited_scales", "rounded", "rows_of", "weight_of"]

T = TypeVar("T", bound=np.generic)
Floats = NDArray[np.floating]

LIMIT = 128
"""What the sizes of two neighbours of one sign may add up to."""
STEPS = 8
"""Scales that are tried between the plain one, which cuts neighbours off, and the one at which none is cut."""
CHUNK = 1 << 20
"""Weights that are tried at once."""


def rows_of(weight: NDArray[T], op: str, transposed: bool = False) -> NDArray[T]:
    """Return a weight as (outputs, inputs), the inputs in the order in which a kernel adds them up.

    That of a Conv is (O, C/group, *kernel); one of a MatMul or Gemm (K, N), or (N, K) if ``transposed``.
    """
    if op == "Conv":
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return weight if transposed else weight.T


def weight_of(rows: NDArray[T], shape: tuple[int, ...], op: str, transposed: bool) -> NDArray[T]:
    """Return rows as the weight of this shape that they were made of."""
    if op == "Conv":
        return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return rows if transposed else rows.T


def excess(rows: NDArray[Any]) -> NDArray[Any]:
    """Return per pair of neighbours (outputs, inputs // 2) what is over ``LIMIT``; 0 or less: it cannot saturate."""
    wide = rows.astype(np.int32) if rows.dtype.kind in "iu" else rows
    one, other = _pairs(wide)
    return np.where(one * other > 0, np.abs(one) + np.abs(other) - LIMIT, 0)


def _pairs(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    count = rows.shape[1] // 2
    return rows[:, 0 : 2 * count : 2], rows[:, 1 : 2 * count : 2]


def limited_scales(rows: Floats, plain: Floats) -> NDArray[np.float32]:
    """Return scales of ``rows`` (O, K), at least ``plain`` (O), with the least error ``Σ(w − s·q)²`` under the limit.

    At ``s = max over pairs of (|w_a| + |w_b|) / 127`` no pair is over the limit, however it is rounded; a smaller scale
    rounds all weights more finely, and cuts off the pairs that are.
    """
    scales = np.asarray(plain, np.float32).copy()
    one, other = _pairs(rows)
    safe = np.where(one * other > 0, np.abs(one) + np.abs(other), 0).max(axis=1, initial=0.0) / np.float32(127)
    tight = np.flatnonzero(safe > scales)
    for part in np.array_split(tight, -(-len(tight) * rows.shape[1] // CHUNK)) if len(tight) else ():
        chosen = np.asarray(rows[part], np.float32)
        first, last = scales[part], safe[part].astype(np.float32)
        least = np.full(len(part), np.inf, np.float32)
        for share in np.linspace(0, 1, STEPS, dtype=np.float32):
            tried = first + (last - first) * share
            lost = rounded(chosen, tried) * tried[:, None] - chosen
            error = np.einsum("ij,ij->i", lost, lost)
            better = error < least
            least[better], scales[part[better]] = error[better], tried[better]
    return np.asarray(scales)


def rounded(rows: Floats, scales: Floats) -> NDArray[np.int8]:
    """Return ``round(rows / scales)``, |q| ≤ 127; of a pair over the limit each is cut by half of what is over it."""
    target = rows / np.asarray(scales, rows.dtype).reshape(-1, 1)
    np.clip(target, -127, 127, out=target)
    one, other = _pairs(target)  # views
    over = np.maximum(excess(target), 0) / 2
    one -= np.sign(one) * over
    other -= np.sign(other) * over
    q = np.rint(target, out=target).astype(np.int8)
    one, other = _pairs(q)
    one -= np.sign(one) * np.maximum(excess(q), 0).astype(np.int8)  # what the last bit of a quotient may leave
    return q
