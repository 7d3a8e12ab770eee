"""What is done about outliers in front of run-time quantization: scales per channel, channels in float, row peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.statistics.moments import Moments

__all__ = ["Smoothing", "smoothing"]

COLUMNS = 128
ALPHAS = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OUTLIERS = (0, 8, 16, 32)
"""How many channels may stay in float."""
STILL = 0.25
"""The least peak of a channel over the median of all: one that stood still on the feeds may move on others."""
WORTH = 0.8
"""Each further operation in front must leave at most this share of the squared error."""
ROUNDED = 0.4
"""The share of the error of rounding to nearest that compensated rounding leaves."""


@dataclass(frozen=True)
class Smoothing:
    """What happens to x in ``y = x·W`` before it is quantized, and the relative squared ``error`` that remains.

    ``scale`` divides the channels of x and multiplies the rows of W (None: none). The channels ``outliers`` of x stay
    in float, with their rows of W. With ``rows`` each row of x is divided by its peak and y multiplied by it; ``low``
    is then the least value of x where that is small, and 0 where both signs have to be looked at.
    """

    scale: NDArray[np.float32] | None = None
    outliers: Sequence[int] | NDArray[np.int64] = ()
    rows: bool = False
    low: float = 0.0
    error: float = inf


def smoothing(
    moments: Moments, weights: Sequence[NDArray[np.float32]], *, scaled: bool = True, beside: bool = True, bits: int = 8
) -> Smoothing:
    """Return the treatment with the least predicted error, each further operation having to pay for itself.

    ``weights`` (K, N each) all read the same input; errors are taken on about 128 of their columns, evenly strided.
    Scales are ``s_j = max|x_j|^α / max|w_j|^(1−α)`` over a grid of α. With ``x' = x/s`` and ``W' = sW`` the relative
    error is ``(Δ²/12·ΣW'²·E[1/‖x‖²] + c·Σ(W' − Ŵ')²·E[x²/‖x‖²]/s²) / ΣW²·E[x²/‖x‖²]``, Δ being 1/255 of the range of
    x' and c what rounding with compensation leaves: the mean is over rows relative to their own size, since in a
    transformer a few tokens are a hundred times as large as the others. Where rows are divided by their peak p,
    ``E[p²/‖x‖²]`` takes the place of ``E[1/‖x‖²]``. After SmoothQuant (Xiao et al. 2022), with α found in closed form
    instead of by running the model, and LLM.int8 (Dettmers et al. 2022).

    Without ``scaled`` the weights stay as they are, without ``beside`` no channel stays in float. ``bits`` are those of
    the weights: what scales take off the error of x they add to that of W, which is 300 times as large in 4 bits as in
    8.
    """
    assert moments.squares is not None and moments.inverse is not None
    assert moments.low is not None and moments.high is not None and moments.crest is not None
    power = moments.squares / max(moments.n, 1)
    inverse = float(moments.inverse[0]) / max(moments.n, 1)
    peak = np.maximum(moments.high, -moments.low)
    peak = np.maximum(peak, STILL * float(np.median(peak[peak > 0])) if peak.any() else 1.0)
    stacked = np.concatenate(weights, axis=1)
    reach = np.maximum(np.abs(stacked).max(axis=1), 1e-6 * float(np.abs(stacked).max()) + 1e-12)
    stacked = stacked[:, :: max(1, stacked.shape[1] // COLUMNS)].astype(np.float64)
    signal = float((stacked**2).sum(axis=1) @ power) or 1.0
    low = float(moments.low.min())
    crest = float(moments.crest[0]) / max(moments.n, 1)
    one_sided = -low < float(moments.high.max()) / 2
    span = 1 + min(-low / np.sqrt(crest / max(inverse, 1e-30)), 1.0)
    best, least = Smoothing(), inf
    for count in (c for c in OUTLIERS if c == 0 or (beside and c * 8 <= len(peak))):
        for alpha in ALPHAS if scaled else ALPHAS[:1]:
            scale = peak**alpha / reach ** (1 - alpha) if alpha else np.ones_like(peak)
            scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
            exact = np.sort(np.argsort(-peak / scale, kind="stable")[:count])
            lows, highs, moved = moments.low / scale, moments.high / scale, stacked * scale[:, None]
            lows[exact] = highs[exact] = moved[exact] = 0
            step = float(highs.max() - lows.min()) / 255
            size, rounding = float((moved**2).sum()), moved - _rounded(moved, bits)
            kept = ROUNDED * float((rounding**2).sum(axis=1) @ (power / scale**2))
            chosen = scale if alpha or count else None
            nodes = bool(alpha) + count / 32 + bool(count)
            forms = [(step**2 / 12 * inverse * size, Smoothing(chosen, exact), nodes)]
            if not alpha:
                peaks = Smoothing(chosen, exact, True, low if one_sided else 0.0)
                forms.append(((span / 255) ** 2 / 12 * crest * size, peaks, nodes + 1))
            for error, form, cost in forms:
                total = (error + kept) / signal
                if total * WORTH**-cost < least:
                    best, least = replace(form, error=total), total * WORTH**-cost
    return best


def _rounded(weight: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-30) / ((1 << (bits - 1)) - 1)
    return np.asarray(np.rint(weight / scale) * scale)
