"""Affine quantization ``x ≈ scale·(q − zero_point)``: ranges of activations from histograms, scales of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import significant
from onnxsqueeze.statistics.histogram import BINS, Histogram
from onnxsqueeze.targets.target import Target

__all__ = ["TINY", "Affine", "Gate", "Grids", "activation", "fixed", "usable", "weight_scales"]

FloatArray = NDArray[np.floating]
Gate = Callable[[NDArray[np.floating]], NDArray[np.floating]]
"""``x·g(x)`` of an array of values."""

TINY = 2.0**-100
"""The smallest scale written: smaller ones would be subnormal in products."""
BITS = 12
"""Significant bits of the ends of a measured range: what another processor adds up otherwise is lost in the rest."""
CLIPPED = 6.0
"""How much worse clipping is than rounding, by the squared error (``benchmarks/ablation.py``)."""
LONG = 1024
"""Rows with fewer weights are scaled to their largest: clipping it never pays there."""
PEAKS = 16
"""How many of a row's largest weights count in full where the others are sampled."""


@dataclass(frozen=True)
class Affine:
    """Parameters of an 8-bit activation: ``q = clip(round(x / scale) + zero_point, 0, 255)``.

    ``signed`` activations are stored as ``q − 128``.
    """

    scale: float
    zero_point: int
    signed: bool = False

    @property
    def zero(self) -> NDArray[np.integer]:
        """The zero point as it is stored, of rank 0."""
        return np.array(self.zero_point - 128, np.int8) if self.signed else np.array(self.zero_point, np.uint8)

    @property
    def low(self) -> float:
        """The smallest value that is represented."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The largest value that is represented."""
        return (255 - self.zero_point) * self.scale


@dataclass(frozen=True)
class Grids:
    """How numbers are written in arithmetic: activations as signed integers or not, with the zero point in the middle
    or anywhere, and weights with one scale per output channel or ``per_tensor``.
    """

    signed: bool = False
    symmetric: bool = False
    per_tensor: bool = False

    @property
    def saturates(self) -> bool:
        """Whether 0 is the smallest stored value, so that a gate may be written as a Q/DQ pair of two scales."""
        return not self.signed and not self.symmetric

    def on(self, target: Target) -> Grids:
        """Return the same where the target lets it, else what the target wants."""
        return replace(self, signed=self.signed or target.signed, symmetric=self.symmetric or target.middle)

    def fixed(self, low: float, high: float) -> Affine:
        """Return the parameters that cover ``[min(low, 0), max(high, 0)]``, zero being exact."""
        if self.symmetric:
            return Affine(max(float(np.float32(max(-low / 128, high / 127))), TINY), 128, self.signed)
        return replace(fixed(low, high), signed=self.signed)


def fixed(low: float, high: float) -> Affine:
    """Return the parameters that cover ``[min(low, 0), max(high, 0)]``, zero being exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(float(np.float32((high - low) / 255)), TINY)
    return Affine(scale, int(np.clip(np.round(-low / scale), 0, 255)))


def usable(histogram: Histogram) -> bool:
    """Return whether 8 bits can hold the tensor: no masks or infinities, and steps finer than most values.

    A tensor with a few huge values (−10000 in an attention mask) has a small relative error and yet loses all the
    others: the smaller 90 % of the non-zero values must keep 10 dB over the rounding noise of the full range.
    """
    if histogram.masked:
        return False
    width = 2 * histogram.limit / BINS
    size = np.abs((np.arange(BINS) + 0.5) * width - histogram.limit)
    order = np.argsort(size, kind="stable")
    counts = histogram.counts[order].astype(np.float64)
    share = np.cumsum(counts) <= 0.9 * max(counts.sum(), 1.0)
    share[0] = True
    noise = counts[share].sum() * ((max(histogram.high, 0.0) - min(histogram.low, 0.0)) / 255) ** 2 / 12
    signal = float(counts[share] @ size[order][share] ** 2)
    return bool(noise == 0 or signal > 10 * noise)


def activation(
    histogram: Histogram, gate: Gate | None = None, form: Grids = Grids(), grid: int = 64
) -> tuple[Affine, float]:
    """Return the parameters with the least mean squared error on the histogram, and that error over the signal.

    For a range [lo, hi] the error is ``Σ_{c<lo}(f(c)−f(lo))² + Σ_{c>hi}(f(c)−f(hi))² + Σ_in f'(c)²·s²/12`` with
    ``s = (hi − lo)/255``: prefix sums of the histogram make each of the ``grid²`` candidates O(1). Zeros are exact
    and cost nothing. What is clipped counts ``CLIPPED`` times: it errs to one side, and that does not average out in
    the layers behind as rounding does. f is the identity, or ``x·g(x)`` where the tensor is read as that alone: what
    a gate g closes need not be represented. lo and hi are looked for between the extremes, rounded to ``BITS`` bits.
    """
    low, high = (float(significant(end, BITS)) for end in (min(histogram.low, 0.0), max(histogram.high, 0.0)))
    width = 2 * histogram.limit / BINS
    centres = (np.arange(BINS) + 0.5) * width - histogram.limit
    counts = histogram.counts.astype(np.float64)
    read = gate or _as_it_is
    values = read(centres)
    slopes = np.subtract(read(centres + width / 2), read(centres - width / 2)) / width
    n0, n1, n2 = (np.concatenate([[0.0], np.cumsum(counts * values**p)]) for p in range(3))
    inside = np.concatenate([[0.0], np.cumsum(counts * slopes**2)])
    signal = n2[-1]
    if signal == 0 or high <= low:
        return form.fixed(low, high), 0.0
    steps = np.arange(1, grid + 1) / grid
    lows = (low * steps)[:, None] if low < 0 else np.zeros((1, 1))
    highs = (high * steps)[None, :] if high > 0 else np.zeros((1, 1))
    if form.symmetric:
        highs = max(-low, high) * steps[None, :]
        lows = -highs * 128 / 127
    scale = np.maximum((highs - lows) / 255, TINY)
    zero = np.clip(np.round(-lows / scale), 0, 255)
    lo, hi = -zero * scale, (255 - zero) * scale
    i = np.clip(np.round((lo + histogram.limit) / width), 0, BINS).astype(np.int64)
    j = np.clip(np.round((hi + histogram.limit) / width), 0, BINS).astype(np.int64)
    at_low, at_high = read(lo), read(hi)
    below = n2[i] - 2 * at_low * n1[i] + at_low**2 * n0[i]
    above = (n2[-1] - n2[j]) - 2 * at_high * (n1[-1] - n1[j]) + at_high**2 * (n0[-1] - n0[j])
    rounding = (inside[j] - inside[i]) * scale**2 / 12
    error = below + above + rounding
    best = np.unravel_index(int(np.argmin(CLIPPED * (below + above) + rounding)), error.shape)
    return form.fixed(float(lo[best]), float(hi[best])), float(error[best] / signal)


def _as_it_is(x: FloatArray) -> FloatArray:
    return x


def weight_scales(rows: FloatArray, steps: int = 9) -> NDArray[np.float32]:
    """Return per row of ``rows`` (O, K) the symmetric scale whose rounding error Σ(w − s·q)², |q| ≤ 127, is least.

    Candidates are ``max|w|/127``, which rows of under ``LONG`` weights always get, times 1.0, 0.96 … 0.68; the error is
    taken on about 512 elements of a row, evenly strided, and on the largest ones, whose clipping a sample would miss.
    """
    size = np.abs(rows)
    top = size.max(axis=1, initial=0.0)
    if rows.shape[1] < LONG:
        return np.asarray(np.maximum(top / np.float32(127), np.float32(TINY)), np.float32)
    stride = max(1, rows.shape[1] // 512)
    peaks = np.partition(size, -PEAKS, axis=1)[:, -PEAKS:] if stride > 1 else np.zeros((len(rows), 0), np.float32)
    full = np.maximum(top / np.float32(127), np.float32(TINY)).astype(np.float32)
    sample = np.ascontiguousarray(rows[:, ::stride], dtype=np.float32)
    best, scale = np.full(len(rows), np.inf, np.float32), full.copy()
    for ratio in 1 - 0.04 * np.arange(steps):
        s = full * np.float32(ratio)
        q = sample / s[:, None]
        np.clip(np.rint(q, out=q), -127, 127, out=q)
        q *= s[:, None]
        q -= sample
        clipped = np.maximum(peaks - 127 * s[:, None], 0)
        error = stride * np.einsum("ij,ij->i", q, q) + np.einsum("ij,ij->i", clipped, clipped)
        better = error < best
        best[better], scale[better] = error[better], s[better]
    return np.asarray(scale, np.float32)
