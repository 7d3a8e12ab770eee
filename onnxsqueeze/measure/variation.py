"""The error of one tensor relative to how it varies: per feed and per part, the worst part counting.

For a part p (channels that hold things of one kind) with the mean μ_c of each channel over all feeds and positions,
its variation is ``V_p = mean (y − μ̂_c)² + 0.1·mean (μ̂_c − μ̄_p)²``, and in feed f ``v_fp`` likewise. The relative
error is

    e_fp = mean (ŷ − y)² / max(w·v_fp + (1 − w)·V_p, V_p / 100),    e_p = √(mean_f e_fp²),
    SQNR = −10·log10 max_p e_p.

A constant offset is no signal, and a factor takes part in both sides. ``μ̂_c = μ̄_p + s·(μ_c − μ̄_p)`` is the mean less
what of the differences between means is chance (James and Stein): ``s = 1 − mean(σ_c²/n_c) / mean (μ_c − μ̄_p)²``, and 0
where a channel was seen once. A part that varies by less than a thousandth of its size is taken to vary so much.
``w = n / (n + 64)`` for the n elements of the part in the feed: what few elements vary by is chance (a regression near
its mean would have next to no variation). Of classes w is 0, as a probability means the same in every feed.

The aggregate over feeds is their root mean square: it is a norm, so that errors of layers add up at most, and lies
between the mean, which forgives one wrecked feed among many, and the maximum, which hangs on a single one.
Over 59 plans for ``mlp.onnx`` the rank correlation with the drop of its accuracy is 0.86 for the mean, 0.88 for the
root mean square and 0.89 for the maximum; where feeds are alike, as for the other models that ship, all order plans
alike.
``benchmarks/ruler.py`` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import MASK

__all__ = ["Layout", "Reference", "as_float", "ordinary_only"]

Array = NDArray[np.generic]
Floats = NDArray[np.float64]

QUIET = 1e-2
"""The least variation of a feed that counts, over that of all feeds: 20 dB under it."""
FEW = 64.0
"""Elements of a feed whose own variation counts half."""
MEANS = 0.1
"""What differences between the means of channels count."""
CONSTANT = 1e-6
"""The least variation of a part, over its mean square."""
JUMP = 1000.0
"""Neighbouring channels whose variations differ by this factor hold things of different kind."""
PARTS = 3
"""Parts that are told apart by data alone, at most."""
MOST = 1 << 16
"""Axes longer than this are no channels at all."""
WIDEST = 4096
"""Axes longer than this are no channels whose kinds are told apart by data."""


@dataclass(frozen=True)
class Layout:
    """Which axis of a tensor holds channels, and where its parts begin; None is found from the data.

    ``centred`` takes the mean of each row out of both sides first: log-probabilities are logits up to a shift. With
    ``whole`` channels are of one kind whatever their variation, as classes are.
    """

    axis: int | None = None
    sizes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    centred: bool = False
    whole: bool = False


class Reference:
    """A tensor as it should be, on all feeds: its channels, their means, its parts and their variation."""

    def __init__(self, values: Sequence[Array | None], layout: Layout | None = None) -> None:
        self.values = values
        self.layout = layout or Layout()
        filled = [value for value in values if value is not None and value.size]
        self.axis = _axis(filled, self.layout)
        self.channels = filled[0].shape[self.axis] if filled and self.axis is not None else 1
        self.masked = False
        zero = np.zeros(self.channels)
        pivot, rows = None, []
        for value in values:
            if value is None or not value.size:
                rows.append((zero, zero, zero))
                continue
            data, usual = self._prepared(value)
            if pivot is None:
                pivot = _per_channel(data) / np.maximum(_counts(data, usual), 1)
            data -= pivot[:, None]  # else the digits of a small variation cancel out in the sums of squares
            if usual is not None:
                data[~usual] = 0.0
            rows.append((_per_channel(data), _energy(data), _counts(data, usual)))
        pivot = zero if pivot is None else pivot
        self._sums, self._squares, self._counts = (np.asarray(each) for each in zip(*rows, strict=True))
        self.counts: Floats = self._counts.sum(0)
        moved = self._sums.sum(0) / np.maximum(self.counts, 1)
        self._moved = moved
        self.means: Floats = pivot + moved
        self.within: Floats = np.maximum(self._squares.sum(0) - self.counts * moved**2, 0.0)
        self.parts = self._found_parts()
        """The number of the part that each channel belongs to."""

    def _prepared(self, value: Array) -> tuple[Floats, NDArray[np.bool_] | None]:
        """Return the values as (before, channels, behind), zero where they are masks or infinite, and where not."""
        usual = ordinary_only(value)
        data = as_float(value)
        if usual is not None:
            self.masked = True
            data = np.where(usual, data, 0.0)
        if self.layout.centred and data.ndim:
            data -= data.mean(-1, keepdims=True)
        shape = self._shape(data)
        return data.reshape(shape), None if usual is None else usual.reshape(shape)

    def _shape(self, data: Floats) -> tuple[int, int, int]:
        if self.axis is None:
            return data.size, 1, 1
        before = int(np.prod(data.shape[: self.axis], dtype=np.int64))
        channels = data.shape[self.axis]
        return before, channels, data.size // max(before * channels, 1)

    def _found_parts(self) -> NDArray[np.intp]:
        sizes = self.layout.sizes
        if sizes and sum(sizes) == self.channels:
            return np.repeat(np.arange(len(sizes)), sizes)
        if self.layout.whole or not 2 <= self.channels <= WIDEST or self.counts.min() < 4:
            return np.zeros(self.channels, np.intp)
        variation = self.within / np.maximum(self.counts, 1)
        level = np.log10(np.maximum(variation, max(float(variation.max()), 1e-300) * 1e-12))
        starts = np.flatnonzero(np.abs(np.diff(level)) >= np.log10(JUMP)) + 1
        edges = [0, *starts.tolist(), self.channels]
        if len(starts) >= PARTS or min(stop - start for start, stop in pairwise(edges)) < 2:
            return np.zeros(self.channels, np.intp)  # channels that hardly vary among others are no kind of their own
        return np.asarray(np.searchsorted(starts, np.arange(self.channels), side="right"), np.intp)

    @cached_property
    def _centres(self) -> tuple[Floats, Floats]:
        """Per channel, what its values are taken relative to, μ̂_c, and the mean of its part, μ̄_p."""
        size = np.maximum(_by_part(np.ones(self.channels), self.parts), 1)
        middle = _by_part(self.means, self.parts) / size
        noise = _by_part(self.within / np.maximum(self.counts * (self.counts - 1), 1), self.parts) / size
        between = _by_part((self.means - middle[self.parts]) ** 2, self.parts) / size
        once = _by_part((self.counts < 2).astype(np.float64), self.parts) > 0
        kept = 1 - np.divide(noise, between, out=np.ones_like(noise), where=between > 0)
        kept = np.where(once, 0.0, np.clip(kept, 0.0, 1.0))
        whole = middle[self.parts]
        return whole + kept[self.parts] * (self.means - whole), whole

    @cached_property
    def variation(self) -> Floats:
        """V_p per part, never less than its floor."""
        centre, middle = self._centres
        unbiased = self.counts / np.maximum(self.counts - 1, 1)
        whole = np.maximum(_by_part(self.counts, self.parts), 1)
        away = (self.means - centre) ** 2 + MEANS * (centre - middle) ** 2
        found = _by_part(self.within * unbiased + self.counts * away, self.parts) / whole
        size = _by_part(self.within + self.counts * self.means**2, self.parts) / whole
        found = np.where(whole == 1, size, found)  # of a single number nothing is known but its size
        return np.maximum(found, CONSTANT * np.where(size > 0, size, float(size.max(initial=0.0))))

    @cached_property
    def by_feed(self) -> Floats:
        """v_fp: what the error of a part in a feed is divided by; 0 where nothing varies at all."""
        centre, middle = self._centres
        moved = self._moved + centre - self.means
        squares = self._squares - 2 * moved * self._sums + self._counts * moved**2
        away = np.maximum(squares, 0.0) + self._counts * MEANS * (centre - middle) ** 2
        if self.layout.whole:
            return np.repeat(self.variation[None], len(away), axis=0)
        counts = np.asarray([_by_part(count, self.parts) for count in self._counts])
        own = np.asarray([_by_part(one, self.parts) for one in away]) / np.maximum(counts, 1)
        weight = counts / (counts + FEW)
        return np.asarray(np.maximum(weight * own + (1 - weight) * self.variation, QUIET * self.variation))

    def errors(self, feed: int, found: Array) -> Floats:
        """Return e_fp for what was found in a feed, per part; infinite where that is NaN or infinite.

        Only the expected side says what is a mask and is left out.
        """
        value = self.values[feed]
        assert value is not None
        channels = self.squares(feed, found)
        scale = self.by_feed[feed]
        total = _by_part(channels, self.parts)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(total == 0, 0.0, np.where(scale > 0, total / scale, np.inf)))

    def squares(self, feed: int, found: Array) -> Floats:
        """Return the squared error of each channel over the number of elements of its part, in one feed."""
        value = self.values[feed]
        assert value is not None
        usual = ordinary_only(value)
        a, b = as_float(value), as_float(found)
        with np.errstate(over="ignore", invalid="ignore"):
            difference = b - a if usual is None else np.where(usual, b - np.where(usual, a, 0.0), 0.0)
        if self.layout.centred and difference.ndim:
            difference = difference - difference.mean(-1, keepdims=True)
        data = difference.reshape(self._shape(difference))
        flags = None if usual is None else usual.reshape(data.shape)
        counts = _by_part(_counts(data, flags), self.parts)
        with np.errstate(over="ignore", invalid="ignore"):
            channels = _energy(data)
        return np.where(np.isnan(channels), np.inf, channels) / np.maximum(counts, 1)[self.parts]


def as_float(values: Array) -> Floats:
    """Return the values in float64; complex ones with real and imaginary parts on a further axis."""
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], -1)
    return values.astype(np.float64)


def ordinary_only(values: Array) -> NDArray[np.bool_] | None:
    """Return where the values are no NaN, infinity or mask, as ``as_float`` lays them out; None if all of them are."""
    if values.dtype.kind in "biu":
        return None
    if values.dtype.kind == "c":
        values = as_float(values)
    if values.size == 0 or (float(values.min()) > -MASK and float(values.max()) < MASK):
        return None
    return np.asarray(np.abs(values.astype(np.float64)) < MASK)


def _axis(values: Sequence[Array], layout: Layout) -> int | None:
    """Return the axis that holds channels: the last one, or of images, which have four axes, the second."""
    rank = values[0].ndim + (values[0].dtype.kind == "c") if values else 0
    if any(value.ndim != values[0].ndim for value in values):
        return None
    axis = layout.axis
    if axis is None:
        axis = 1 if rank >= 4 else rank - 1
    axis = axis % rank if rank else 0
    alike = len({value.shape[axis] for value in values if axis < value.ndim}) <= 1
    few = rank >= 2 and axis < values[0].ndim and values[0].shape[axis] <= MOST
    return axis if alike and few else None


def _per_channel(data: Floats) -> Floats:
    return np.asarray(data.sum(axis=(0, 2)))


def _energy(data: Floats) -> Floats:
    return np.asarray(np.einsum("pcq,pcq->c", data, data))


def _counts(data: Floats, usual: NDArray[np.bool_] | None) -> Floats:
    if usual is None:
        return np.full(data.shape[1], float(data.shape[0] * data.shape[2]))
    return np.asarray(usual.sum(axis=(0, 2)), np.float64)


def _by_part(values: Floats, parts: NDArray[np.intp]) -> Floats:
    return np.bincount(parts, weights=values, minlength=int(parts.max(initial=0)) + 1).astype(np.float64)
