"""Weights as indices of a few levels: which levels, which one for each weight, and levels fitted to what they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.compensation import LARGEST, feedback, rounded
from onnxsqueeze.techniques.quantization.kmeans import clusters

__all__ = ["Palette", "fit"]

Floats = NDArray[np.floating]

BINS = 4096
"""Different values from which levels are found; more are joined to so many steps of equal width first."""
STEPS = 8
"""Conjugate gradients by which levels are fitted to the outputs."""


@dataclass(frozen=True)
class Palette:
    """A weight (N, K) as ``levels[row·G // N, index]``: indices (N, K), levels (G, count) that ascend in each row.

    ``error`` is ``tr[(W − Ŵ) S (W − Ŵ)ᵀ] / tr[W S Wᵀ]``, the relative squared error of the outputs; S = I if unknown.
    """

    indices: NDArray[np.uint8]
    levels: NDArray[np.float32]
    error: float

    @property
    def weight(self) -> NDArray[np.float32]:
        """The weight (N, K) that they stand for."""
        return _looked_up(self.indices, self.levels)


def fit(rows: Floats, count: int, groups: int = 1, second: Floats | None = None) -> Palette:
    """Return indices and levels for a weight ``rows`` (N, K); each of ``groups`` runs of N/groups rows has its own.

    Levels are those with the least ``Σ_k d_k·(w − level)²``, d_k = S_kk being the mean square of input k and S =
    ``second``, exactly (1 without S). With S, columns are rounded to levels in turn so that their errors cancel
    (``linear.compensation``), and then levels get the least ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]`` for the indices that they
    have: a least-squares problem in groups·count unknowns, solved by conjugate gradients.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    importance = None if second is None else np.maximum(np.diag(second), 0.0).astype(np.float64)
    if importance is not None:
        importance = importance + 1e-3 * importance.mean() + 1e-30
    parts = rows.reshape(groups, -1, rows.shape[1])
    levels = np.stack([_levels(part, importance, count) for part in parts]).astype(np.float32)
    if second is None or rows.shape[1] > LARGEST:
        return _palette(rows, _nearest(rows, levels), levels, second)
    indices = np.empty(rows.shape, np.uint8)
    back = feedback(second)

    def choose(k: int, target: Floats) -> Floats:
        column = _nearest(target[:, None], levels)
        indices[:, back.order[k]] = column[:, 0]
        return _looked_up(column, levels)[:, 0]

    rounded(rows.T, back, choose)
    return _palette(rows, indices, _refitted(rows, indices, levels, np.asarray(second, np.float32)), second)


def _palette(rows: Floats, indices: NDArray[np.uint8], levels: NDArray[np.float32], second: Floats | None) -> Palette:
    narrow = None if second is None else np.asarray(second, np.float32)
    change = rows - _looked_up(indices, levels)
    left, power = (float(np.sum((x if narrow is None else x @ narrow) * x, dtype=np.float64)) for x in (change, rows))
    return Palette(indices, levels, left / max(power, 1e-30))


def _levels(part: Floats, importance: Matrix | None, count: int) -> Matrix:
    mass = np.ones(part.shape[1]) if importance is None else importance
    weights = np.broadcast_to(mass, part.shape).reshape(-1)
    values, place = np.unique(part.reshape(-1), return_inverse=True) if part.size <= BINS else _binned(part)
    total = np.bincount(place, weights=weights, minlength=len(values)).astype(np.float64)
    means = np.bincount(place, weights=weights * part.reshape(-1), minlength=len(values)).astype(np.float64)
    there = total > 0
    found = clusters(means[there] / total[there], total[there], count)
    return np.concatenate([found, np.full(count - len(found), found[-1])])


def _binned(part: Floats) -> tuple[Floats, NDArray[np.int64]]:
    flat = part.reshape(-1).astype(np.float64)
    low, high = float(flat.min()), float(flat.max())
    place = np.minimum((flat - low) * (BINS / max(high - low, 1e-300)), BINS - 1).astype(np.int64)
    return np.empty(BINS), place


def _nearest(rows: Floats, levels: Floats) -> NDArray[np.uint8]:
    found = np.empty(rows.shape, np.uint8)
    step = len(rows) // len(levels)
    for g, each in enumerate(levels):
        part = slice(g * step, (g + 1) * step)
        found[part] = np.searchsorted((each[1:] + each[:-1]) / 2, rows[part])
    return found


def _looked_up(indices: NDArray[np.uint8], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = indices.reshape(len(levels), -1)
    return np.asarray(np.take_along_axis(levels, parts.astype(np.intp), 1).reshape(indices.shape))


def _refitted(rows: Floats, indices: NDArray[np.uint8], levels: Floats, second: Floats) -> NDArray[np.float32]:
    """Return the levels of the least ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]`` for these indices, as far as some steps take them."""
    size = levels.size
    base = np.repeat(np.arange(len(levels)), indices.size // len(levels)) * levels.shape[1]
    place = base + indices.reshape(-1)

    def pulled(change: Floats) -> Matrix:
        return np.bincount(place, weights=(change @ second).reshape(-1), minlength=size).astype(np.float64)

    def spread(vector: Matrix) -> NDArray[np.float32]:
        return np.asarray(vector.astype(np.float32)[place].reshape(rows.shape), np.float32)

    diagonal = np.bincount(place, weights=np.broadcast_to(np.diag(second), rows.shape).reshape(-1), minlength=size)
    inverse = 1 / np.maximum(diagonal, 1e-12 * max(diagonal.max(), 1e-30))
    found = levels.reshape(-1).astype(np.float64)
    left = pulled(rows - spread(found))
    towards = ahead = inverse * left
    power = float(left @ ahead)
    for _ in range(STEPS):
        image = pulled(spread(towards))
        curve = float(towards @ image)
        if curve <= 0 or power <= 0:
            break
        found = found + power / curve * towards
        left = left - power / curve * image
        ahead = inverse * left
        power, before = float(left @ ahead), power
        towards = ahead + power / before * towards
    return np.asarray(found.reshape(levels.shape), np.float32)
