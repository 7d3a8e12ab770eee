"""The one sweep over the feeds that gathers all statistics: ONNX Runtime reduces what only extremes are wanted of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import edit
from onnxsqueeze.calibration import MASK, SAMPLE, Histogram, Moments, Statistics, ordinary, stride
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Channels, Gram, Mean, Need, Range
from onnxsqueeze.cost import activations
from onnxsqueeze.runtime import Session

__all__ = ["collect", "input_rows", "patches"]

Array = NDArray[np.generic]
Progress = Callable[[str, int, int], None]
Shape = tuple[int, ...]

FETCH_LIMIT = 1 << 27
"""Activations that one run hands over, in bytes; a model with more is run several times over the feeds."""
SMALL = 1 << 12
"""Tensors with fewer elements are handed over whole: reducing them would take as long."""
SAMPLES = 1 << 17
"""About this many elements of a tensor enter its histogram from all feeds, but not more than 16384 or less than 1024
from one."""
ROWS = 1024
"""Rows from all feeds, or twice as many as there are channels, that enter the Gram matrix of relative rows."""
SLICE = 10
"""The first opset in which Slice takes steps."""
TO_THE_END = 2**62


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
    (those inside bodies) are left out. Memory does not grow with the number of feeds: of large tensors whose range or
    mean is wanted, ONNX Runtime itself takes the extremes, the mean and every so manieth value, and hands over only
    these; the others that one run hands over take 128 MB at most, and the feeds are run again for what is left.
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
    known = activations(graph, feeds[0])
    reduced = {
        name: shape for name, (shape, dtype) in known.items()
        if name in wanted and name in made and dtype == np.float32 and prod(shape) > SMALL and graph.opset >= SLICE
        and all(isinstance(need, Range) or _is_channel_mean(need, len(shape)) for need in wanted[name])
    }  # fmt: skip
    sizes = {name: prod(shape) * dtype.itemsize for name, (shape, dtype) in known.items()}
    groups = _grouped([name for name in wanted if name in made and name not in reduced], sizes)
    steps = len(groups) * len(feeds)
    count = min(max(SAMPLES // len(feeds), 1024), SAMPLE)
    for first, group in zip(range(0, steps, len(feeds)), groups, strict=True):
        shapes = {} if first else reduced
        session, reductions, given = _session(graph, group, shapes, wanted, count)
        for i, feed in enumerate(feeds):
            if progress is not None:
                progress("calibrating", first + i, steps)
            values = session.run(feed, given)
            while unusual := [name for name, outputs in reductions.items() if not _usual(outputs, values)]:
                # with masks or infinities among the values, extremes and means say nothing
                shapes = {name: shape for name, shape in shapes.items() if name not in unusual}
                group += unusual
                session, reductions, given = _session(graph, group, shapes, wanted, count)
                values = session.run(feed, given)
            for name, outputs in reductions.items():
                _add_reduced(statistics, wanted[name], len(shapes[name]), outputs, values)
            fed = {name: feed[name] for name in wanted if name in inputs} if first == 0 else {}
            for name, value in (fed | {name: values[name] for name in group}).items():
                if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                    for need in wanted[name]:
                        _add(statistics, need, value, rows, len(feeds), np.random.default_rng([seed, i]))
    return statistics


def _is_channel_mean(need: Need, rank: int) -> bool:
    return isinstance(need, Mean) and rank > 1 and need.axis % rank in (1, rank - 1)


def _session(
    graph: Graph, fetched: Sequence[str], reduced: Mapping[str, Shape], wanted: Mapping[str, Sequence[Need]], count: int
) -> tuple[Session, dict[str, dict[str, str]], list[str]]:
    """Return a session, by tensor the names of the outputs that reduce it, and all its outputs that are asked for."""
    copy = edit.duplicate(graph)
    present = {tensor.name for tensor in copy.outputs}
    found = {tensor.name: tensor for node in copy.nodes for tensor in node.outputs}
    copy.outputs.extend(found[name] for name in fetched if name not in present)
    reductions = {}
    for name, shape in reduced.items():
        axes = sorted({need.axis % len(shape) for need in wanted[name] if isinstance(need, Mean)})
        reductions[name] = _reduce(copy, found[name], shape, axes, count)
    given = [*fetched, *(output for outputs in reductions.values() for output in outputs.values())]
    return Session(copy), reductions, given


def _reduce(graph: Graph, tensor: gs.Tensor, shape: Shape, axes: Sequence[int], count: int) -> dict[str, str]:
    """Give the graph the extremes of a tensor, its means along ``axes`` and a sample as outputs; return their names."""
    maker = tensor.inputs[0]

    def constant(values: list[int]) -> gs.Constant:
        return edit.constant(graph, f"{tensor.name}_to_reduce", np.array(values, np.int64))

    def insert(op: str, inputs: list[gs.Tensor], **attrs: object) -> gs.Tensor:
        return edit.insert(graph, graph, op, inputs, f"{tensor.name}_{op.lower()}", attrs, after=maker)

    made = {"low": insert("ReduceMin", [tensor], keepdims=0), "high": insert("ReduceMax", [tensor], keepdims=0)}
    made["size"] = insert("Size", [tensor])
    for axis in axes:
        other = [a for a in range(len(shape)) if a != axis]
        if graph.opset < 18:
            made[f"mean {axis}"] = insert("ReduceMean", [tensor], axes=other, keepdims=0)
        else:
            made[f"mean {axis}"] = insert("ReduceMean", [tensor, constant(other)], keepdims=0)
    flat = insert("Reshape", [tensor, constant([-1])])
    slicing = [constant([0]), constant([TO_THE_END]), constant([0]), constant([stride(shape, count)])]
    made["sample"] = edit.insert(graph, graph, "Slice", [flat, *slicing], f"{tensor.name}_sample", after=flat.inputs[0])
    graph.outputs.extend(made.values())
    return {part: str(output.name) for part, output in made.items()}


def _usual(outputs: Mapping[str, str], values: Mapping[str, object]) -> bool:
    """Return whether a tensor has no infinities, NaN or masks."""
    low, high = (float(np.asarray(values[outputs[part]])) for part in ("low", "high"))
    return low > -MASK and high < MASK


def _add_reduced(
    statistics: Statistics, needs: Sequence[Need], rank: int, outputs: Mapping[str, str], values: Mapping[str, object]
) -> None:
    part = {name: np.asarray(values[output]) for name, output in outputs.items()}
    for need in needs:
        if isinstance(need, Range):
            histogram = statistics.ranges.setdefault(need, Histogram())
            histogram.add(float(part["low"]), float(part["high"]), int(part["size"]), part["sample"])
            continue
        assert isinstance(need, Mean)
        mean = part[f"mean {need.axis % rank}"].astype(np.float64)
        count = int(part["size"]) // max(mean.size, 1)
        found = Moments(count, mean * count)
        old = statistics.moments.get(need)
        statistics.moments[need] = found if old is None else old.merge(found)


def _grouped(tensors: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
    """Split the tensors into runs that each hand over at most FETCH_LIMIT bytes; there is at least one."""
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


def _add(statistics: Statistics, need: Need, value: Array, rows: int, feeds: int, rng: np.random.Generator) -> None:
    if isinstance(need, Range):
        statistics.ranges.setdefault(need, Histogram()).update(value)
        return
    if isinstance(need, Mean):
        found = _means(value, need.axis)
    elif isinstance(need, Channels):
        found = _channels(value, need, feeds, rng)
    else:
        found = _gram(value, need, max(64, rows // feeds), rng)
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


def _channels(value: Array, need: Channels, feeds: int, rng: np.random.Generator) -> Moments:
    """Return the moments that Channels asks for; a mask or an infinity counts as zero."""
    limit = -(-max(2 * value.shape[need.axis], ROWS) // feeds)
    x = np.moveaxis(value, need.axis, -1).reshape(-1, value.shape[need.axis])
    usual = ordinary(x)
    x = x if usual is None else np.where(usual, x, 0)
    rows = x.astype(np.float32 if np.abs(x).max(initial=0) < 1e15 else np.float64)  # squares of float32 end at 1e38
    norms = (rows * rows).sum(axis=1)
    weights = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return Moments(
        len(rows),
        rows.sum(0, dtype=np.float64),
        gram=_relative_gram(rows, weights, limit, rng) if need.gram else None,
        squares=(weights @ rows**2).astype(np.float64),
        inverse=weights.sum(keepdims=True, dtype=np.float64),
        crest=(weights * np.abs(rows).max(1, initial=0.0) ** 2).sum(keepdims=True, dtype=np.float64),
        low=rows.min(0, initial=0.0).astype(np.float64),
        high=rows.max(0, initial=0.0).astype(np.float64),
    )


def _relative_gram(
    rows: NDArray[np.floating], weights: NDArray[np.floating], limit: int, rng: np.random.Generator
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
