"""Weights as indices of a few levels: which levels, which one for each weight, and levels fitted to what they hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.compensation import LARGEST, feedback, rounded
from onnxsqueeze.techniques.quantization.kmeans import clusters

__all__ = ["Palette", "fit", "in_pairs"]

Floats = NDArray[np.floating]

BINS = 4096
"""Different values from which levels are found; more are joined to so many steps of equal width first."""
ROUNDS = 12
"""Rounds of k-means of pairs."""
SAMPLE = 1 << 15
"""Pairs that they look at."""
STEPS = 8
"""Conjugate gradients by which levels are fitted to the outputs."""


@dataclass(frozen=True)
class Palette:
    """A weight (N, K) as ``levels[row·G // N, index]``: indices (N, K), levels (G, count) that ascend in each row.

    With ``width`` 2 an index stands for two neighbours of a row: indices (N, K/2), levels (count, 2). ``error`` is the
    relative squared error of the outputs, ``tr[(W − Ŵ) S (W − Ŵ)ᵀ] / tr[W S Wᵀ]``; S = I where it is not known.
    """

    indices: NDArray[np.uint8]
    levels: NDArray[np.float32]
    error: float
    width: int = 1

    @property
    def weight(self) -> NDArray[np.float32]:
        """The weight (N, K) that they stand for."""
        if self.width == 2:
            return np.asarray(self.levels[self.indices].reshape(len(self.indices), -1))
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
    base = np.repeat(np.arange(groups), rows.size // groups) * count
    found = _refitted(rows, base + indices.reshape(-1), levels, np.asarray(second, np.float32))
    return _palette(rows, indices, found, second)


def in_pairs(rows: Floats, scalar: Palette, second: Floats) -> Palette:
    """Return a palette of pairs for a weight (N, K) with K even, whose indices take as much as those of ``scalar``.

    Its count² pairs begin as those of the levels of ``scalar`` and are moved by k-means, weighted by d; pairs of
    columns are rounded in turn. With t the targets of a pair, w its weights, u what the first passes on to the second
    and D as in ``linear.compensation``, c is the pair with the least ``D_0·(t_0 − c_0)² + D_1·(t_1 + u·(w_0 − c_0) −
    c_1)²``. After GPTVQ (van Baalen et al. 2024).
    """
    rows = np.ascontiguousarray(rows, np.float32)
    one = scalar.levels[0].astype(np.float64)
    start = np.stack(np.meshgrid(one, one, indexing="ij"), axis=-1).reshape(-1, 2)
    levels = _moved(rows, start, np.maximum(np.diag(second), 0.0)).astype(np.float32)
    indices = np.empty((len(rows), rows.shape[1] // 2), np.uint8)
    back = feedback(second, together=2)

    def choose(k: int, target: Floats) -> Floats:
        first = rows[:, back.order[k], None] - levels[:, 0]
        error = back.share[k] * (target[0][:, None] - levels[:, 0]) ** 2
        error += back.share[k + 1] * (target[1][:, None] + back.upper[k, k + 1] * first - levels[:, 1]) ** 2
        best = error.argmin(axis=1)
        indices[:, back.order[k] // 2] = best
        return np.asarray(levels[best].T)

    rounded(rows.T, back, choose, together=2)
    place = (2 * indices[..., None].astype(np.intp) + np.arange(2)).reshape(-1)
    levels = _refitted(rows, place, levels, np.asarray(second, np.float32))
    made = Palette(indices, levels, 0.0, 2)
    return replace(made, error=_error(rows, made.weight, second))


def _moved(rows: Floats, levels: Matrix, importance: Matrix) -> Matrix:
    """Return pairs of levels after some rounds of k-means on pairs of weights, evenly spread where they are many."""
    pairs = rows.reshape(-1, 2)
    mass = np.broadcast_to(importance + 1e-3 * importance.mean() + 1e-30, rows.shape).reshape(-1, 2)
    every = max(len(pairs) // SAMPLE, 1)
    pairs, mass = pairs[::every], mass[::every]
    levels = levels.copy()
    for _ in range(ROUNDS):
        far = [mass[:, i, None] * (pairs[:, i, None] - levels[:, i]) ** 2 for i in (0, 1)]
        nearest = (far[0] + far[1]).argmin(axis=1)
        for i in (0, 1):
            total = np.bincount(nearest, weights=mass[:, i], minlength=len(levels))
            moment = np.bincount(nearest, weights=mass[:, i] * pairs[:, i], minlength=len(levels))
            levels[:, i] = np.divide(moment, total, out=levels[:, i].copy(), where=total > 0)
    return levels


def _palette(rows: Floats, indices: NDArray[np.uint8], levels: NDArray[np.float32], second: Floats | None) -> Palette:
    return Palette(indices, levels, _error(rows, _looked_up(indices, levels), second))


def _error(rows: Floats, found: Floats, second: Floats | None) -> float:
    narrow = None if second is None else np.asarray(second, np.float32)
    parts = rows - found, rows
    left, power = (float(np.sum((x if narrow is None else x @ narrow) * x, dtype=np.float64)) for x in parts)
    return left / max(power, 1e-30)


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


def _refitted(rows: Floats, place: NDArray[np.intp], levels: Floats, second: Floats) -> NDArray[np.float32]:
    """Return the levels of the least ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]``, as far as some steps take them.

    ``place`` says of each weight, row by row, which of the levels it is.
    """
    size = levels.size

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
