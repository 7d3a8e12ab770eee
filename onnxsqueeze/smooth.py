"""Moving outliers of activations into the weight: one scale per channel in front of run-time quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.calibration import Moments

__all__ = ["Smoothing", "smoothing"]

COLUMNS = 128
ALPHAS = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Smoothing:
    """``scale`` divides the channels of x and multiplies the rows of W (None: none); ``error`` is what remains."""

    scale: NDArray[np.float32] | None
    error: float


def smoothing(moments: Moments, weights: Sequence[NDArray[np.float32]]) -> Smoothing:
    """Return the scales ``s_j = max|x_j|^α / max|w_j|^(1−α)`` with the least predicted error, over a grid of α.

    ``weights`` (K, N each) all read the same input; errors are taken on about 128 of their columns, evenly
    strided. With ``x' = x/s`` and ``W' = sW`` the relative error is
    ``(Δ²/12·ΣW'²·E[1/‖x‖²] + Σ(W' − Ŵ')²·E[x²/‖x‖²]/s²) / ΣW²·E[x²/‖x‖²]``, Δ being 1/255 of the range of x': the
    mean is over rows relative to their own size, since in a transformer a few tokens are a hundred times as large as
    the others. After SmoothQuant (Xiao et al. 2022), with α found in closed form instead of by running the model.
    """
    assert moments.squares is not None and moments.inverse is not None
    assert moments.low is not None and moments.high is not None
    power = moments.squares / max(moments.n, 1)
    inverse = float(moments.inverse[0]) / max(moments.n, 1)
    peak = np.maximum(np.maximum(moments.high, -moments.low), 1e-6 * float(np.max(moments.high - moments.low)) + 1e-12)
    stacked = np.concatenate(weights, axis=1)
    reach = np.maximum(np.abs(stacked).max(axis=1), 1e-6 * float(np.abs(stacked).max()) + 1e-12)
    stacked = stacked[:, :: max(1, stacked.shape[1] // COLUMNS)].astype(np.float64)
    signal = float((stacked**2).sum(axis=1) @ power) or 1.0
    best = Smoothing(None, float("inf"))
    for alpha in ALPHAS:
        scale = peak**alpha / reach ** (1 - alpha) if alpha else np.ones_like(peak)
        scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
        moved = stacked * scale[:, None]
        step = float((moments.high / scale).max() - (moments.low / scale).min()) / 255
        rounding = moved - _rounded(moved)
        error = step**2 / 12 * inverse * float((moved**2).sum()) + float((rounding**2).sum(axis=1) @ (power / scale**2))
        # a Mul in front costs time: it must pay
        if error / signal < best.error * (0.8 if best.scale is None and alpha else 1.0):
            best = Smoothing(scale if alpha else None, error / signal)
    return best


def _rounded(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-30) / 127
    return np.asarray(np.rint(weight / scale) * scale)
