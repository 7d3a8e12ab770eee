"""Statistics of activations: what they are, how they merge, and the one sweep over the feeds that gathers them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Channels, Gram, Mean, Need, Range
from onnxsqueeze.cost import activation_bytes
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime import Session

__all__ = [
    "Histogram",
    "Moments",
    "Statistics",
    "as_gram",
    "collect",
    "input_rows",
    "load_statistics",
    "ordinary",
    "patches",
    "save_statistics",
]

BINS = 4096
MASK = 1e30
"""Values at least this large are masks or infinities, not signal: they enter no statistic."""
SAMPLE = 1 << 14
"""At most this many elements of one tensor of one feed enter its histogram, evenly strided; minima are exact."""
PARTS = ("gram", "squares", "inverse", "crest", "low", "high")
FETCH_LIMIT = 1 << 29
"""Activations that one run keeps, in bytes; a model with more is run several times over the feeds."""

Array = NDArray[np.generic]
Progress = Callable[[str, int, int], None]


def ordinary(values: Array) -> NDArray[np.bool_] | None:
    """Return where the values are no NaN, infinity or mask; None if all of them are, which is quickly seen."""
    with np.errstate(invalid="ignore", over="ignore"):
        if values.size == 0 or (float(values.min()) > -MASK and float(values.max()) < MASK):
            return None
        return np.asarray(np.abs(values.astype(np.float32)) < MASK)


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
        if flat.size == 0:
            return
        self.elements += flat.size
        low, high = float(flat.min()), float(flat.max())
        first = self.samples == 0
        self.low, self.high = (low, high) if first else (min(self.low, low), max(self.high, high))
        self.samples += 1
        self.low_sum += low
        self.high_sum += high
        self._grow(max(abs(low), abs(high)))
        if flat.size > SAMPLE:
            flat = flat[:: -(-flat.size // SAMPLE) | 1]
        present = flat[flat != 0].astype(np.float64)
        self.zeros += flat.size - present.size
        # times a power of two, then floor: exact, so that a value's bins at two widths always agree
        index = np.floor(present * (BINS / (2 * self.limit))).astype(np.int64) + BINS // 2
        self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, reach: float) -> None:
        if reach <= 0:
            return
        needed = int(np.frexp(reach)[1])
        if self.counts.any():
            while self.exponent < needed:
                middle = self.counts.reshape(-1, 2).sum(1)
                self.counts = np.zeros(BINS, np.int64)
                self.counts[BINS // 4 : 3 * BINS // 4] = middle
                self.exponent += 1
        else:
            self.exponent = max(self.exponent, needed)

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
    mean of ``xxᵀ/‖x‖²`` over some of the rows times n.
    """

    n: int
    total: NDArray[np.float64]
    gram: NDArray[np.floating] | None = None
    squares: NDArray[np.float64] | None = None
    inverse: NDArray[np.float64] | None = None
    crest: NDArray[np.float64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        """μ = Σx / n."""
        return self.total / max(self.n, 1)

    @property
    def second(self) -> NDArray[np.floating]:
        """Σxxᵀ / n, uncentred."""
        assert self.gram is not None
        return self.gram / max(self.n, 1)

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
                arrays[f"{key}.n"], arrays[f"{key}.total"] = np.array(m.n), m.total
                for part in PARTS:
                    if (array := getattr(m, part)) is not None:
                        arrays[f"{key}.{part}"] = array
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(target)
    except OSError as error:
        raise UsageError(f"the statistics cannot be written to '{path}': {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
            raise UsageError(f"'{path}' is not a statistics file that --stats wrote ({error})") from error
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
    return Statistics({}, {need: Moments(int(arrays[f"{key}.n"]), total, **parts)})


def collect(
    graph: Graph,
    needs: Iterable[Need],
    feeds: Sequence[dict[str, Array]],
    *,
    rows: int = 16384,
    seed: int = 0,
    progress: Progress | None = None,
) -> Statistics:
    """Run the graph once over the feeds and gather every need.

    About ``rows`` rows enter one Gram matrix, spread evenly over the feeds. Tensors that the main graph does not make
    (those inside bodies) are left out. Memory does not grow with the number of feeds: the tensors that one run keeps
    take 512 MB at most, and the feeds are run again for the others.
    """
    inputs = {t.name for t in graph.inputs}
    made = {t.name for node in graph.nodes for t in node.outputs if t.name}
    wanted: dict[str, list[Need]] = {}
    for need in dict.fromkeys(needs):
        if need.tensor in inputs | made:
            wanted.setdefault(need.tensor, []).append(need)
    statistics = Statistics()
    if not wanted or not len(feeds):
        return statistics
    groups = _grouped([name for name in wanted if name in made], activation_bytes(graph, feeds[0]))
    steps = len(groups) * len(feeds)
    for first, group in zip(range(0, steps, len(feeds)), groups, strict=True):
        session = Session(_exposing(graph, group))
        for i, feed in enumerate(feeds):
            if progress is not None:
                progress("calibrating", first + i, steps)
            seen: dict[str, object] = {name: feed[name] for name in inputs & wanted.keys()} if first == 0 else {}
            for name, value in (seen | session.run(feed, group)).items():
                if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                    for need in wanted[name]:
                        _add(statistics, need, value, max(64, rows // len(feeds)), np.random.default_rng([seed, i]))
    return statistics


def _exposing(graph: Graph, tensors: Sequence[str]) -> Graph:
    """Return a copy of the graph with the tensors as further outputs."""
    copy = graph.copy()
    present = {tensor.name for tensor in copy.outputs}
    found = {tensor.name: tensor for node in copy.nodes for tensor in node.outputs}
    copy.outputs.extend(found[name] for name in tensors if name not in present)
    return copy


def _grouped(tensors: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
    """Split the tensors into runs that each keep at most FETCH_LIMIT bytes; there is at least one."""
    groups: list[list[str]] = [[]]
    total = 0
    for tensor in tensors:
        size = sizes.get(tensor, 0)
        if groups[-1] and total + size > FETCH_LIMIT:
            groups.append([])
            total = 0
        groups[-1].append(tensor)
        total += size
    return groups


def _add(statistics: Statistics, need: Need, value: Array, rows: int, rng: np.random.Generator) -> None:
    if isinstance(need, Range):
        statistics.ranges.setdefault(need, Histogram()).update(value)
        return
    if isinstance(need, Mean):
        found = _means(value, need.axis)
    else:
        found = _channels(value, need, rows // 4, rng) if isinstance(need, Channels) else _gram(value, need, rows, rng)
    old = statistics.moments.get(need)
    statistics.moments[need] = found if old is None else old.merge(found)


def _means(value: Array, axis: int) -> Moments:
    """Return the moments per index of ``axis``; a mask or an infinity counts as the mean of the others."""
    other = tuple(a for a in range(value.ndim) if a != axis % value.ndim)
    count = value.size // max(value.shape[axis], 1)
    usual = ordinary(value)
    if usual is None:
        return Moments(count, value.sum(axis=other, dtype=np.float64))
    sums = np.where(usual, value, 0).sum(axis=other, dtype=np.float64)
    return Moments(count, sums * count / np.maximum(usual.sum(axis=other), 1))


def _channels(value: Array, need: Channels, limit: int, rng: np.random.Generator) -> Moments:
    """Return the moments that Channels asks for; a mask or an infinity counts as zero."""
    x = np.moveaxis(value, need.axis, -1).reshape(-1, value.shape[need.axis])
    usual = ordinary(x)
    rows = np.asarray(x if usual is None else np.where(usual, x, 0), np.float64)
    norms = (rows * rows).sum(axis=1)
    weights = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return Moments(
        len(rows),
        rows.sum(0),
        gram=_relative_gram(rows, weights, limit, rng) if need.gram else None,
        squares=weights @ rows**2,
        inverse=weights.sum(keepdims=True),
        crest=(weights * np.abs(rows).max(1, initial=0.0) ** 2).sum(keepdims=True),
        low=rows.min(0, initial=0.0),
        high=rows.max(0, initial=0.0),
    )


def _relative_gram(
    rows: NDArray[np.float64], weights: NDArray[np.float64], limit: int, rng: np.random.Generator
) -> NDArray[np.floating]:
    """Return ``Σ xxᵀ/‖x‖²`` as the mean over at most ``limit`` rows says."""
    count = len(rows)
    if count > limit:
        chosen = np.sort(rng.choice(count, limit, replace=False))
        rows, weights = rows[chosen], weights[chosen]
    x = (rows * np.sqrt(weights)[:, None]).astype(np.float32)
    return np.asarray((x.T @ x) * np.float32(count / max(len(x), 1)))


def _gram(value: Array, need: Gram, rows: int, rng: np.random.Generator) -> Moments:
    """Return the moments of up to ``rows`` rows; a mask or an infinity counts as zero."""
    x = input_rows(value, need, rows, rng)
    usual = ordinary(x)
    x = x if usual is None else np.where(usual, x, 0)
    x = x.astype(np.float32 if np.abs(x).max(initial=0) < 1e15 else np.float64)  # squares of float32 end at 1e38
    return Moments(len(x), x.sum(0, dtype=np.float64), (x.T @ x).astype(np.float64))


def input_rows(value: Array, need: Gram, rows: int, rng: np.random.Generator) -> Array:
    """Return up to ``rows`` input rows of a linear operator; which ones depends on their number and ``rng`` alone."""
    if need.kernel:
        return patches(value, need, rows, rng)
    flat = np.moveaxis(value, need.axis, -1).reshape(-1, value.shape[need.axis])
    return flat if len(flat) <= rows else flat[np.sort(rng.choice(len(flat), rows, replace=False))]


def patches(value: Array, need: Gram, rows: int, rng: np.random.Generator) -> Array:
    """Return up to ``rows`` im2col patches of ``value`` (N, C, *spatial) as an array (rows, C·Πkernel)."""
    dims = len(need.kernel)
    strides, dilations = need.strides or (1,) * dims, need.dilations or (1,) * dims
    size = value.shape[2:]
    extent = [(k - 1) * d + 1 for k, d in zip(need.kernel, dilations, strict=True)]
    if need.auto_pad:
        total = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, strides, extent, strict=True)]
        small, big = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (small, big) if need.auto_pad == "SAME_UPPER" else (big, small)
    else:
        pads = need.pads or (0,) * 2 * dims
        begin, end = list(pads[:dims]), list(pads[dims:])
    padded = np.pad(value, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    out = [(n + b + e - x) // s + 1 for n, b, e, x, s in zip(size, begin, end, extent, strides, strict=True)]
    count = len(value) * prod(out)
    chosen = np.arange(count) if count <= rows else np.sort(rng.choice(count, rows, replace=False))
    batch, *where = np.unravel_index(chosen, (len(value), *out))
    index: list[Array] = [_along(batch, 0, dims), _along(np.arange(value.shape[1]), 1, dims)]
    for axis in range(dims):
        taps = np.arange(need.kernel[axis]) * dilations[axis]
        index.append(_along(where[axis] * strides[axis], 0, dims) + _along(taps, axis + 2, dims))
    taken: Array = padded[tuple(index)]
    return taken.reshape(len(chosen), -1)


def _along(vector: Array, axis: int, dims: int) -> Any:
    """Return the vector along one axis of (rows, C, *kernel), so that indices broadcast against each other."""
    shape = [1] * (dims + 2)
    shape[axis] = -1
    return vector.reshape(shape)


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
