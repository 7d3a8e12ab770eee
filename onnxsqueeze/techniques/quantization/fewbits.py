"""Weights in 2 to 8 bits: scales of blocks that are searched, and integers whose errors cancel on the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.linear.compensation import LARGEST, feedback
from onnxsqueeze.techniques.quantization.grids import TINY
from onnxsqueeze.techniques.quantization.rounding import compensated

__all__ = ["LEVELS", "Fit", "Grid", "block_of", "fit", "product_block", "rows_of"]

Floats = NDArray[np.floating]

STEPS = 16
"""Scales that are tried for a block."""
CHUNK = 1 << 15
"""Weights that are tried at once: what fits the cache of a core."""
BLOCK = 32
"""How many neighbouring weights share a scale, where the length of a row allows it."""
HALF = 2.0**-14
"""The smallest normal number of float16: smaller scales are written in float32."""
LEVELS = 5
"""From so many blocks in a row on, a byte for each and a float32 for the row take less than a float16 for each."""
COARSEST = 4 / 127
"""The least share of a row's largest scale that 8 bits hold well: it is rounded by an eighth at most."""


@dataclass(frozen=True)
class Grid:
    """The integers of ``bits`` in two's complement, ``−2^(b−1) … 2^(b−1) − 1``; 8 bits leave out −128."""

    bits: int

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Fit:
    """Integers (N, K) and scales (N, K/block): ``W ≈ scale·q``; scales may be negative where both signs were tried.

    Where there are ``steps`` (N, K/block), scales have two levels: they are steps times ``tops`` (N), one per row.
    """

    q: NDArray[np.int8]
    scales: NDArray[np.float32]
    grid: Grid
    steps: NDArray[np.int8] | None = None
    tops: NDArray[np.float32] | None = None

    @property
    def weight(self) -> NDArray[np.float32]:
        """The weight (N, K) that they stand for."""
        every = np.repeat(self.scales, self.q.shape[1] // self.scales.shape[1], axis=1)
        return np.asarray(self.q * every, np.float32)


def block_of(row: int) -> int:
    """Return how many neighbours of a row of this length share a scale: a divisor of it near ``BLOCK``, or all."""
    near = [d for d in range(BLOCK // 2, 2 * BLOCK + 1) if row % d == 0]
    return min(near, key=lambda d: (abs(d - BLOCK), d), default=row)


def product_block(row: int) -> int:
    """Return a block that kernels of few bits are fast on and that divides a row; 0 if there is none."""
    return next((block for block in (32, 64, 128, 16) if row % block == 0), 0)


def fit(
    rows: Floats,
    grid: Grid,
    block: int,
    second: Floats | None = None,
    *,
    signs: bool = True,
    compact: bool = True,
    floor: Floats | float = 0.0,
) -> Fit:
    """Return integers and scales for a weight ``rows`` (N, K), one scale per ``block`` neighbours of a row.

    ``second`` (K, K) is the covariance or ``E[xxᵀ]`` of the inputs: scales are then weighted by its diagonal, and the
    integers chosen one column after the other so that each makes up for the errors of those before it. ``signs``: the
    scale may be negative, so that the largest weight of a block falls on the side with one integer more. ``compact``:
    scales are integers of 8 bits times one number per row where rows have ``LEVELS`` blocks, else values of float16
    where that can hold them; the integers are chosen for the scales as they are written. ``floor`` is the smallest
    scale allowed, where none is negative.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    diagonal = None if second is None else np.maximum(np.diag(second), 0).astype(np.float32)
    scales = _searched(rows, grid, block, diagonal, signs)
    scales = scales if signs else np.maximum(scales, np.asarray(floor, np.float32))
    size = np.abs(scales)
    steps: NDArray[np.int8] | None = None
    tops: NDArray[np.float32] | None = None
    if compact and _has_levels(size):
        tops = size.max(axis=1) / np.float32(127)
        least = np.maximum(np.rint(size / tops[:, None]), 1)
        steps = np.where(scales < 0, -least, least).astype(np.int8)
        scales = np.asarray(steps * tops[:, None], np.float32)
    elif compact and size.size and size.min() >= HALF and size.max() <= 65504:
        scales = scales.astype(np.float16).astype(np.float32)
    if second is None or rows.shape[1] > LARGEST:
        return Fit(_nearest(rows, scales, block, grid), scales, grid, steps, tops)
    every = np.repeat(scales.T, block, axis=0)
    found = compensated(rows.T, every, feedback(second), limits=(grid.low, grid.high))
    return Fit(np.ascontiguousarray(found.T), scales, grid, steps, tops)


def _has_levels(size: Floats) -> bool:
    """Return whether sizes of scales (N, B) are well kept as integers of 8 bits: none but of zeros is far too small."""
    if size.shape[1] < LEVELS:
        return False
    least = size.max(axis=1, keepdims=True) * np.float32(COARSEST)
    return bool(((size >= least) | (size <= np.float32(TINY * 128))).all())


def _chunks(rows: Floats) -> Sequence[slice]:
    step = max(CHUNK // max(rows.shape[1], 1), 1)
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _nearest(rows: Floats, scales: Floats, block: int, grid: Grid) -> NDArray[np.int8]:
    found = np.empty(rows.shape, np.int8)
    for part in _chunks(rows):
        blocks = rows[part].reshape(-1, rows.shape[1] // block, block) / scales[part][..., None]
        found[part] = np.clip(np.rint(blocks, out=blocks), grid.low, grid.high, out=blocks).reshape(rows[part].shape)
    return found


def _searched(rows: Floats, grid: Grid, block: int, importance: Floats | None, signs: bool) -> NDArray[np.float32]:
    """Return per block the scale with the least ``Σ d·(w − s·q)²``, fitted once more to its integers.

    That fit is ``s = Σ d·q·w / Σ d·q²``; d is the importance (K) of the inputs, 1 where it is not known.
    """
    count = rows.shape[1] // block
    found = np.empty((len(rows), count), np.float32)
    roots = None if importance is None else np.sqrt(importance + importance.mean() * 1e-3 + 1e-30)
    roots = None if roots is None else roots.reshape(1, count, block).astype(np.float32)
    for part in _chunks(rows):
        x = rows[part].reshape(-1, count, block)
        peak = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
        top = np.maximum(np.abs(peak), np.float32(TINY * 128))
        sign = np.where(peak > 0, np.float32(-1), np.float32(1)) if signs else np.float32(1)
        base = sign * top / np.float32(-grid.low if signs else grid.high)
        best, scale = np.full(base.shape, np.inf, np.float32), base.copy()
        for share in np.linspace(0.5, -grid.low / grid.high if signs else 1, STEPS, dtype=np.float32):
            tried = base * share
            error = _error(x, tried, grid, roots)
            better = error < best
            best[better], scale[better] = error[better], tried[better]
        q = np.clip(np.rint(x / scale[..., None]), grid.low, grid.high)
        weighted = q if roots is None else q * roots * roots
        power, product = np.einsum("nbk,nbk->nb", weighted, q), np.einsum("nbk,nbk->nb", weighted, x)
        refit = np.divide(product, power, out=scale.copy(), where=power > 0)
        better = _error(x, refit, grid, roots) < best
        found[part] = np.where(better & (np.abs(refit) > TINY), refit, scale)
    return found


def _error(x: Floats, scale: Floats, grid: Grid, roots: Floats | None) -> Floats:
    wide = scale[..., None]
    q = x * (1 / wide)
    np.clip(np.rint(q, out=q), grid.low, grid.high, out=q)
    q *= wide
    q -= x
    if roots is not None:
        q *= roots
    return np.asarray(np.einsum("nbk,nbk->nb", q, q))


def rows_of(values: Floats, op: str, transposed: bool) -> Floats:
    """Return a weight as (N, K): a row per output of a layer, or as it lies in memory where it is no layer's."""
    if op in ("Conv", "Gemm", "MatMul") and values.ndim >= 2:
        first = op == "Conv" or (op == "Gemm" and transposed)
        return values.reshape(len(values), -1) if first else values.reshape(-1, values.shape[-1]).T
    row = prod(values.shape[1:]) if values.ndim > 1 else values.size
    return values.reshape(-1, row if row >= BLOCK // 2 else values.size)
