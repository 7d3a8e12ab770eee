"""Weights as integers whose errors cancel on the inputs that really occur, and that no processor adds up wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.linear.compensation import Feedback
from onnxsqueeze.linear.compensation import rounded as by_turns
from onnxsqueeze.targets.pairs import LIMIT
from onnxsqueeze.techniques.quantization.grids import TINY

__all__ = ["compensated"]

Floats = NDArray[np.floating]


def compensated(
    weight: Floats,
    scales: Floats,
    back: Feedback,
    *,
    pairs: bool = False,
    limits: tuple[int, int] = (-127, 127),
) -> NDArray[np.int8]:
    """Return integers q with ``weight ≈ scales·q`` within ``limits`` that make ``tr (W − sq)ᵀ S (W − sq)`` small.

    ``weight`` and ``scales`` broadcast to (K, N); ``back`` is what ``linear.compensation.feedback`` makes of
    ``S = E[xxᵀ]`` of the inputs, and rows are rounded in turn as ``linear.compensation`` says. With ``pairs`` no two
    neighbours of one sign, rows 2j and 2j + 1, are over ``LIMIT`` together (see ``onnxsqueeze.targets.pairs``);
    what is cut off one of them is made up for like all that is lost. Weights whose scale (it may be negative) is next
    to nothing are zero and stay so: they could make up for nothing, and their products would be subnormal: slow.
    """
    order = back.order
    scale = np.broadcast_to(scales, weight.shape)[order].astype(np.float32)
    rows = weight[order].astype(np.float32) if pairs else np.empty(0, np.float32)
    found = np.empty(weight.shape, np.int8)
    places = np.argsort(order)
    partners = np.append(places, [-1])[np.minimum(order ^ 1, len(order))]  # where the neighbour's turn is

    def choose(k: int, target: Floats) -> Floats:
        target = target / scale[k]
        room: tuple[Any, Any] = np.float32(limits[0]), np.float32(limits[1])
        if pairs and partners[k] >= 0:
            room = _room(target, rows, scale, found, order, k, int(partners[k]))
        q = np.where(np.abs(scale[k]) > 128 * TINY, np.clip(np.rint(target), *room), 0)
        found[order[k]] = q
        return np.asarray(q * scale[k])

    by_turns(weight, back, choose)
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
