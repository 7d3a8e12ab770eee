"""The one sweep over the feeds that gathers all statistics: ONNX Runtime reduces what only extremes are wanted of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import MASK
from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Instrument, Session
from onnxsqueeze.runtime.shapes import activations
from onnxsqueeze.statistics.accumulate import Accumulator
from onnxsqueeze.statistics.histogram import SAMPLE, stride
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Gram, Mean, Need, Range

__all__ = ["Part", "collect"]

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
SLICE = 10
"""The first opset in which Slice takes steps."""
TO_THE_END = 2**62


@dataclass(frozen=True)
class Part:
    """Which feeds of how many a sweep runs over: those from number ``first`` of ``total``, a multiple of 4.

    ``threads`` is the number of threads of ONNX Runtime, 0 for all cores.
    """

    first: int
    total: int
    threads: int = 0


def collect(
    graph: Graph,
    needs: Iterable[Need],
    feeds: Sequence[dict[str, Array]],
    *,
    rows: int = 16384,
    seed: int = 0,
    progress: Progress | None = None,
    part: Part | None = None,
) -> Statistics:
    """Run the graph once over the feeds and gather every need.

    About ``rows`` rows enter one Gram matrix, spread evenly over the feeds. Tensors that the main graph does not make
    (those inside bodies) are left out. Memory does not grow with the number of feeds: of large tensors whose range or
    mean is wanted, ONNX Runtime itself takes the extremes, the mean and every so manieth value, and hands over only
    these; the others that one run hands over take 128 MB at most, and the feeds are run again for what is left.
    Tensors that cannot be handed over, because the model does not run then, are left out. With ``part`` the feeds are
    a part of more: of each the same is taken as in a sweep over all. Raises FeedError for a feed that the graph itself
    refuses.
    """
    needs = list(needs)
    part = Part(0, len(feeds)) if part is None else part
    try:
        return _collected(graph, needs, feeds, rows, seed, progress, part)
    except UnmeasuredError:
        Session(graph).run(feeds[0])
        tensors = list(dict.fromkeys(need.tensor for need in needs))
    if len(tensors) < 2:
        return Statistics()
    found = Statistics()
    for half in (set(tensors[: len(tensors) // 2]), set(tensors[len(tensors) // 2 :])):
        some = [need for need in needs if need.tensor in half]
        found = found.merge(collect(graph, some, feeds, rows=rows, seed=seed, progress=progress, part=part))
    return found


def _collected(
    graph: Graph,
    needs: Sequence[Need],
    feeds: Sequence[dict[str, Array]],
    rows: int,
    seed: int,
    progress: Progress | None,
    part: Part,
) -> Statistics:
    inputs = {t.name for t in graph.inputs}
    made = {t.name for node in graph.nodes for t in node.outputs if t.name}
    wanted: dict[str, list[Need]] = {}
    read: dict[tuple[Need, str], list[Gram | None]] = {}
    for need in dict.fromkeys(needs):
        for each in need.each if isinstance(need, Gram) else (need,):
            if each.tensor in inputs | made:
                wanted.setdefault(each.tensor, []).append(need)
                read.setdefault((need, each.tensor), []).append(each if isinstance(each, Gram) else None)
    wanted = {name: list(dict.fromkeys(each)) for name, each in wanted.items()}
    if not wanted or not len(feeds):
        return Statistics()
    found = Accumulator(part.total, rows)
    known = activations(graph, feeds[0])
    reduced = {
        name: shape for name, (shape, dtype) in known.items()
        if name in wanted and name in made and dtype == np.float32 and prod(shape) > SMALL and graph.opset >= SLICE
        and all(isinstance(need, Range) or _is_channel_mean(need, len(shape)) for need in wanted[name])
    }  # fmt: skip
    sizes = {name: prod(shape) * dtype.itemsize for name, (shape, dtype) in known.items()}
    groups = _grouped([name for name in wanted if name in made and name not in reduced], sizes)
    steps = len(groups) * len(feeds)
    count = min(max(SAMPLES // part.total, 1024), SAMPLE)
    for first, group in zip(range(0, steps, len(feeds)), groups, strict=True):
        shapes = {} if first else reduced
        session, reductions, given = _session(graph, group, shapes, wanted, count, part.threads)
        for i, feed in enumerate(feeds):
            if progress is not None:
                progress("calibrating", first + i, steps)
            values = session.run(feed, given)
            while unusual := [name for name, outputs in reductions.items() if not _usual(outputs, values)]:
                # with masks or infinities among the values, extremes and means say nothing
                shapes = {name: shape for name, shape in shapes.items() if name not in unusual}
                group += unusual
                session, reductions, given = _session(graph, group, shapes, wanted, count, part.threads)
                values = session.run(feed, given)
            for name, outputs in reductions.items():
                own = {key: np.asarray(values[output]) for key, output in outputs.items()}
                low, high, size = float(own["low"]), float(own["high"]), int(own["size"])
                for need in wanted[name]:
                    assert isinstance(need, (Range, Mean))
                    if isinstance(need, Mean):
                        own["mean"] = own[f"mean {need.axis % len(shapes[name])}"]
                    found.add_reduced(need, low, high, size, own)
            fed = {name: feed[name] for name in wanted if name in inputs} if first == 0 else {}
            for name, value in (fed | {name: values[name] for name in group}).items():
                if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                    for need in wanted[name]:
                        for how in read[need, name]:
                            found.add(need, value, np.random.default_rng([seed, part.first + i]), i, how)
    return found.finish()


def _is_channel_mean(need: Need, rank: int) -> bool:
    return isinstance(need, Mean) and rank > 1 and need.axis % rank in (1, rank - 1)


def _session(
    graph: Graph,
    fetched: Sequence[str],
    reduced: Mapping[str, Shape],
    wanted: Mapping[str, Sequence[Need]],
    count: int,
    threads: int,
) -> tuple[Instrument, dict[str, dict[str, str]], list[str]]:
    """Return a session, by tensor the names of the outputs that reduce it, and all its outputs that are asked for."""
    copy = edit.duplicate(graph)
    present = {tensor.name for tensor in copy.outputs}
    found = {tensor.name: tensor for node in copy.nodes for tensor in node.outputs}
    copy.outputs.extend(found[name] for name in fetched if name not in present)
    reductions = {}
    # ONNX Runtime starts at the leaves, last node first: the reductions of early tensors come last in the list, so that
    # each tensor is reduced as soon as it is made, and not kept to the end
    for name in [name for name in reversed(found) if name in reduced]:
        shape = reduced[name]
        axes = sorted({need.axis % len(shape) for need in wanted[name] if isinstance(need, Mean)})
        reductions[name] = _reduce(copy, found[name], shape, axes, count)
    given = [*fetched, *(output for outputs in reductions.values() for output in outputs.values())]
    return Instrument(copy, threads), {name: reductions[name] for name in reduced}, given


def _reduce(graph: Graph, tensor: gs.Tensor, shape: Shape, axes: Sequence[int], count: int) -> dict[str, str]:
    """Give the graph the extremes of a tensor, its means along ``axes`` and a sample as outputs; return their names."""

    def constant(values: list[int]) -> gs.Constant:
        return edit.constant(graph, f"{tensor.name}_to_reduce", np.array(values, np.int64))

    def insert(op: str, inputs: list[gs.Tensor], **attrs: object) -> gs.Tensor:
        return edit.insert(graph, graph, op, inputs, f"{tensor.name}_{op.lower()}", attrs)

    made = {"low": insert("ReduceMin", [tensor], keepdims=0), "high": insert("ReduceMax", [tensor], keepdims=0)}
    made["size"] = insert("Size", [tensor])
    for axis in axes:
        other = [a for a in range(len(shape)) if a != axis]
        if graph.opset < 18:
            made[f"mean {axis}"] = insert("ReduceMean", [tensor], axes=other, keepdims=0)
        else:
            made[f"mean {axis}"] = insert("ReduceMean", [tensor, constant(other)], keepdims=0)
    if not axes:
        made["sum"] = insert("ReduceSum", [tensor], keepdims=0)  # NaN, that ReduceMin and ReduceMax do not see
    flat = insert("Reshape", [tensor, constant([-1])])
    zero, end, step = constant([0]), constant([TO_THE_END]), constant([stride(shape, count)])
    made["sample"] = insert("Slice", [flat, zero, end, zero, step])
    graph.outputs.extend(made.values())
    return {part: str(output.name) for part, output in made.items()}


def _usual(outputs: Mapping[str, str], values: Mapping[str, object]) -> bool:
    """Return whether a tensor has no infinities, NaN or masks."""
    low, high = (float(np.asarray(values[outputs[part]])) for part in ("low", "high"))
    sums = [np.asarray(values[output]) for part, output in outputs.items() if part.startswith(("sum", "mean"))]
    return low > -MASK and high < MASK and not any(np.isnan(each).any() for each in sums)


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
