"""Statistics of activations: what they are, how they merge, and the one sweep over the feeds that gathers them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import gcd, isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Array, ordinary
from onnxsqueeze.contract import Channels, Gram, Mean, Need, Range
from onnxsqueeze.errors import UsageError
from onnxsqueeze.files import whole

__all__ = [
    "BINS",
    "SAMPLE",
    "Histogram",
    "Moments",
    "Statistics",
    "as_gram",
    "load_statistics",
    "save_statistics",
    "stride",
]

BINS = 4096
SAMPLE = 1 << 14
"""About this many elements of one tensor of one feed enter its histogram at most, evenly strided; minima are exact."""
PARTS = ("gram", "squares", "inverse", "crest", "low", "high")

Progress = Callable[[str, int, int], None]


def stride(shape: Sequence[int], count: int = SAMPLE) -> int:
    """Return the distance at which about ``count`` elements of a tensor are taken.

    It shares no factor with any dimension: else only some columns, or some channels, would ever be seen. It is prime,
    so that it seldom shares one with the dimensions that the tensor has in another feed either.
    """
    step = max(prod(shape) // count, 1)
    while any(gcd(step, size) > 1 for size in shape) or any(step % d == 0 for d in range(2, isqrt(step) + 1)):
        step += 1
    return step


@dataclass
class Histogram:
    """Counts of the non-zero values of a tensor in 4096 bins over ``[−T, T)``, T a power of two.

    When a value outside arrives, T doubles and neighbouring bins are added, so merging is exact and the order of
    the feeds does not matter.
    """

    exponent: int = -126
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    zeros: int = 0
    low: float = 0.0
    high: float = 0.0
    samples: int = 0
    low_sum: float = 0.0
    high_sum: float = 0.0
    elements: int = 0
    masked: int = 0

    @property
    def limit(self) -> float:
        """T: half the width of the histogram."""
        return float(2.0**self.exponent)

    def update(self, values: Array) -> None:
        """Add one feed's values; infinite, NaN and mask-like ones are left out."""
        flat = values.reshape(-1)
        usual = ordinary(flat)
        if usual is not None:
            flat = flat[usual]
            self.masked += usual.size - flat.size
        if flat.size:
            self.extend(float(flat.min()), float(flat.max()), flat.size)
            self.count(flat[:: stride(values.shape)])

    def extend(self, low: float, high: float, elements: int) -> None:
        """Widen the histogram to one feed's extremes, none of which is infinite, NaN or mask-like."""
        self.elements += elements
        first = self.samples == 0
        self.low, self.high = (low, high) if first else (min(self.low, low), max(self.high, high))
        self.samples += 1
        self.low_sum += low
        self.high_sum += high
        self._grow(max(abs(low), abs(high)))

    def count(self, sample: Array) -> None:
        """Count values that lie within the extremes seen so far."""
        # times a power of two, then floor: exact, so that a value's bins at two widths always agree; below 2**-100 that
        # would overflow in float32, and over 2**11 it could underflow
        narrow = sample.dtype == np.float32 and -100 < self.exponent < 12
        kind = np.float32 if narrow else np.float64
        index = np.floor(sample.astype(kind, copy=False) * kind(BINS / (2 * self.limit)))
        index += BINS // 2
        zeros = sample.size - int(np.count_nonzero(sample))
        self.counts += np.bincount(index.astype(np.intp), minlength=BINS)
        self.counts[BINS // 2] -= zeros
        self.zeros += zeros

    def _grow(self, reach: float) -> None:
        needed = int(np.frexp(reach)[1]) if reach > 0 else self.exponent
        if needed <= self.exponent:
            return
        if self.counts.any():
            while self.exponent < needed:
                middle = self.counts.reshape(-1, 2).sum(1)
                self.counts = np.zeros(BINS, np.int64)
                self.counts[BINS // 4 : 3 * BINS // 4] = middle
                self.exponent += 1
        else:
            self.exponent = needed

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of both; exact and commutative."""
        if not other.samples or not self.samples:
            return self if self.samples else other
        one, two = (Histogram(h.exponent, h.counts.copy()) for h in (self, other))
        for histogram in (one, two):
            histogram._grow(np.ldexp(0.5, max(self.exponent, other.exponent)))
        return Histogram(
            max(self.exponent, other.exponent),
            one.counts + two.counts,
            self.zeros + other.zeros,
            min(self.low, other.low),
            max(self.high, other.high),
            self.samples + other.samples,
            self.low_sum + other.low_sum,
            self.high_sum + other.high_sum,
            self.elements + other.elements,
            self.masked + other.masked,
        )


@dataclass
class Moments:
    """``n``, ``Σx`` (K) over rows x in float64, with ``Σxxᵀ`` (K×K) for Gram.

    For Channels: ``squares`` is ``Σ x²/‖x‖²``, so that a few huge rows do not outweigh all others, ``inverse`` is
    ``Σ 1/‖x‖²``, ``crest`` ``Σ max|x|²/‖x‖²``, and ``low`` and ``high`` are the extremes per channel; ``gram`` is the
    mean of ``xxᵀ/‖x‖²`` over some of the rows times n. ``runs`` is the number of feeds.
    """

    n: int
    total: NDArray[np.float64]
    gram: NDArray[np.floating] | None = None
    squares: NDArray[np.float64] | None = None
    inverse: NDArray[np.float64] | None = None
    crest: NDArray[np.float64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    runs: int = 1

    @property
    def mean(self) -> NDArray[np.float64]:
        """μ = Σx / n."""
        return self.total / max(self.n, 1)

    @property
    def second(self) -> NDArray[np.floating]:
        """Σxxᵀ / n, uncentred."""
        assert self.gram is not None
        return self.gram / max(self.n, 1)

    def add(self, other: Moments) -> None:
        """Add the moments of further rows, in place; products, where ``other`` has none, stay as they are."""
        self.n += other.n
        self.runs += other.runs
        self.total += other.total
        for part in PARTS:
            mine, more = getattr(self, part), getattr(other, part)
            if mine is not None and more is not None:
                {"low": np.minimum, "high": np.maximum}.get(part, np.add)(mine, more, out=mine)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows."""

        def both(one: NDArray[np.floating] | None, two: NDArray[np.floating] | None, how: np.ufunc) -> Any:
            return None if one is None or two is None else how(one, two)

        return Moments(
            self.n + other.n,
            self.total + other.total,
            both(self.gram, other.gram, np.add),
            both(self.squares, other.squares, np.add),
            both(self.inverse, other.inverse, np.add),
            both(self.crest, other.crest, np.add),
            both(self.low, other.low, np.minimum),
            both(self.high, other.high, np.maximum),
            self.runs + other.runs,
        )


@dataclass
class Statistics:
    """What one sweep has measured, by the need that asked for it. Empty when there are no feeds."""

    ranges: dict[Range, Histogram] = field(default_factory=dict)
    moments: dict[Mean | Channels | Gram, Moments] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ranges or self.moments)

    def range(self, tensor: str) -> Histogram | None:
        """Return the histogram of a tensor, None if it was not measured or held no ordinary value."""
        found = self.ranges.get(Range(tensor))
        return found if found is not None and found.samples else None

    def of(self, need: Mean | Channels | Gram) -> Moments | None:
        """Return the moments that answer a need, None if there are none."""
        found = self.moments.get(need)
        return found if found is not None and found.n else None

    def missing(self, needs: Iterable[Need]) -> list[Need]:
        """Return the needs that nothing here answers."""
        return [n for n in needs if n not in (self.ranges if isinstance(n, Range) else self.moments)]

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sweeps."""
        merged = Statistics(dict(self.ranges), dict(self.moments))
        for wanted, histogram in other.ranges.items():
            merged.ranges[wanted] = merged.ranges[wanted].merge(histogram) if wanted in merged.ranges else histogram
        for need, moments in other.moments.items():
            merged.moments[need] = merged.moments[need].merge(moments) if need in merged.moments else moments
        return merged


def save_statistics(path: str | os.PathLike[str], stages: Mapping[str, Statistics]) -> None:
    """Write statistics by stage (the pipeline text that ran before the sweep) to an ``.npz`` file, all or nothing.

    Raises UsageError if the file cannot be written.
    """
    arrays: dict[str, Array] = {}
    index: list[dict[str, object]] = []
    for stage, statistics in stages.items():
        for need in (*statistics.ranges, *statistics.moments):
            key = f"s{len(index)}"
            index.append({"stage": stage, "kind": type(need).__name__, "need": asdict(need), "key": key})
            if isinstance(need, Range):
                h = statistics.ranges[need]
                rest = [h.exponent, h.zeros, h.low, h.high, h.samples, h.low_sum, h.high_sum, h.elements, h.masked]
                arrays[f"{key}.counts"], arrays[f"{key}.rest"] = h.counts, np.array(rest, np.float64)
            else:
                m = statistics.moments[need]
                arrays[f"{key}.n"], arrays[f"{key}.total"] = np.array([m.n, m.runs]), m.total
                for part in PARTS:
                    if (array := getattr(m, part)) is not None:
                        arrays[f"{key}.{part}"] = array
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with whole(Path(path), f"the statistics file '{path}'") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_statistics(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Statistics]:
    """Read files that ``save_statistics`` wrote and merge them. Raises UsageError if one is something else."""
    stages: dict[str, Statistics] = {}
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for entry in json.loads(arrays["index"].tobytes()):
                    one, stage = _read(entry, arrays), str(entry["stage"])
                    stages[stage] = stages[stage].merge(one) if stage in stages else one
        except Exception as error:
            raise UsageError(f"'{path}' is not a file of statistics that this project wrote ({error})") from error
    return stages


def _read(entry: dict[str, Any], arrays: Mapping[str, Array]) -> Statistics:
    key, kind = entry["key"], entry["kind"]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["need"].items()}
    if kind == "Range":
        exponent, zeros, low, high, samples, low_sum, high_sum, elements, masked = arrays[f"{key}.rest"].tolist()
        counts = arrays[f"{key}.counts"].astype(np.int64)
        if counts.shape != (BINS,):
            raise ValueError(f"{counts.size} bins instead of {BINS}")
        histogram = Histogram(
            int(exponent), counts, int(zeros), low, high, int(samples), low_sum, high_sum, int(elements), int(masked)
        )
        return Statistics({Range(**fields): histogram}, {})
    kinds: dict[str, type[Mean | Channels | Gram]] = {"Mean": Mean, "Channels": Channels, "Gram": Gram}
    need = kinds[kind](**fields)
    total = arrays[f"{key}.total"].astype(np.float64)
    parts = {part: arrays[f"{key}.{part}"].astype(np.float64) for part in PARTS if f"{key}.{part}" in arrays}
    if "gram" in parts and parts["gram"].shape != (total.size, total.size):
        raise ValueError(f"a Gram matrix of shape {list(parts['gram'].shape)} for {total.size} sums")
    n, runs = arrays[f"{key}.n"].tolist()
    return Statistics({}, {need: Moments(int(n), total, **parts, runs=int(runs))})


def as_gram(node: gs.Node, weight_shape: Sequence[int]) -> Gram:
    """Return the Gram need of a Conv node of one group."""
    attrs = node.attrs
    auto_pad = str(attrs.get("auto_pad") or "NOTSET")
    return Gram(
        node.inputs[0].name,
        kernel=tuple(int(k) for k in weight_shape[2:]),
        strides=tuple(attrs.get("strides") or ()),
        dilations=tuple(attrs.get("dilations") or ()),
        pads=tuple(attrs.get("pads") or ()) if auto_pad == "NOTSET" else (),
        auto_pad=auto_pad if auto_pad.startswith("SAME") else "",
    )
