"""Layers that quantize their input at run time: what is done about outliers, and what it saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import inf

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.needs import Channels
from onnxsqueeze.targets.times import Times
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.emit.weights import Kept
from onnxsqueeze.techniques.quantization.layers import Layers
from onnxsqueeze.techniques.quantization.outliers import Smoothing, smoothing

__all__ = ["Dynamic", "DynamicLayer", "run_time_times"]

ROWS = 128
"""Rows of an input whose size is not known."""


@dataclass(frozen=True)
class DynamicLayer:
    """A layer in its form of run-time quantization; ``float_time`` and ``int8_time`` are in nanoseconds."""

    node: gs.Node
    work: Quantized
    float_time: float
    int8_time: float

    @property
    def error(self) -> float:
        """The relative squared error of its output, as predicted; infinity if nothing was measured."""
        return inf if self.work.smoothing is None else self.work.smoothing.error


class Dynamic:
    """The layers of a graph that can quantize their input at run time; layers that share an input share the form."""

    def __init__(
        self, layers: Layers, stats: Statistics, kept: Kept, known: Mapping[str, Smoothing | None] | None = None
    ) -> None:
        self.layers, self.view, self.stats, self.kept = layers, layers.view, stats, kept
        self._known = known or {}
        self._joint: set[int] = set()
        """The layers that share their weight with no layer of another kind."""

    @cached_property
    def found(self) -> list[DynamicLayer]:
        """All of them, in the order of the graph."""
        if "dynamic" not in self.view.target.integers.forms:
            return []
        root = self.layers.root
        static = [n for n in self.layers.static if n.op != "Conv" and not self.stats.range(root(n.inputs[0]).name)]
        nodes = [*self.layers.dynamic, *static]
        found = [layer for group in self._groups(nodes) for layer in self._group(group)]
        places = {id(node): i for i, node in enumerate(self.view.nodes)}
        return sorted(found, key=lambda layer: places[id(layer.node)])

    def _groups(self, nodes: list[gs.Node]) -> list[list[gs.Node]]:
        """Return the layers that are treated alike: those on one input, and those on one weight."""
        inside = {id(node) for node in nodes}
        found: dict[int, list[gs.Node]] = {}
        for node in nodes:
            tied = self.layers.sharing.layer(node)
            keys = [id(node.inputs[0])]
            if tied is not None and all(id(each) in inside for each in tied.layers):
                self._joint.add(id(node))
                keys.append(id(tied))
            groups = {id(found[key]): found[key] for key in keys if key in found}
            if len(groups) == 1:
                group = next(iter(groups.values()))
                group.append(node)
            else:
                group = [*(each for old in groups.values() for each in old), node]
                found.update({key: group for key, old in found.items() if id(old) in groups})
            found.update(dict.fromkeys(keys, group))
        return list({id(group): group for group in found.values()}.values())

    def _group(self, nodes: list[gs.Node]) -> list[DynamicLayer]:
        inputs = {id(node.inputs[0]): (node.inputs[0], self.view.in_body(node)) for node in nodes}
        own = {
            key: None if in_body else self.stats.of(Channels(tensor.name, -1, True))
            for key, (tensor, in_body) in inputs.items()
        }
        known = [each for each in own.values() if each is not None]
        moments = reduce(Moments.merge, known) if len(known) == len(own) else None
        source = str(nodes[0].inputs[0].name)
        treatment = self._known.get(source)
        shared = [node for node in nodes if self.layers.sharing.layer(node) is not None]
        if treatment is None and moments is not None:
            scaled = all(id(node) in self._joint for node in shared)
            weights = {id(self.layers.weight(node)): node for node in nodes}
            matrices = [self.layers.matrix(node) for node in weights.values()]
            treatment = smoothing(moments, matrices, scaled=scaled, beside=not shared)
        readers = Counter(id(node.inputs[0]) for node in nodes)
        made = []
        for node in nodes:
            mine = own[id(node.inputs[0])]
            rows = self._rows(node.inputs[0]) if mine is None else mine.n / mine.runs
            tied = self.layers.sharing.layer(node)
            fits = tied is None or (tied.alone and id(node) in self._joint)
            work = Quantized("dynamic", smoothing=treatment, source=source, kept=self.kept, tied=tied is not None)
            work = replace(work, moments=moments if fits else None)
            size, count = self.layers.matrix(node).shape, readers[id(node.inputs[0])]
            times = run_time_times(size, rows, treatment or Smoothing(), count, self.view.target.times)
            made.append(DynamicLayer(node, work, *times))
        return made

    def _rows(self, tensor: gs.Tensor) -> float:
        shape = self.view.shape(tensor)
        sizes = [d for d in (shape or ())[:-1] if isinstance(d, int)]
        known = shape is not None and len(sizes) == len(shape) - 1
        return float(np.prod(sizes)) if known else float(ROWS)


def run_time_times(
    weight: tuple[int, ...], rows: float, smoothing: Smoothing, readers: int, table: Times
) -> tuple[float, float]:
    """Return the time of a MatMul (K, N) on so many rows: in float, and with its input quantized at run time.

    What happens to the input is shared by all its ``readers``.
    """
    inputs, outputs = weight
    whole, integer = table.run_time
    product = rows * inputs * outputs
    passes = 0.35 + 0.15 * (smoothing.scale is not None) + 0.3 * smoothing.rows
    nodes = 1 + (smoothing.scale is not None) + 4 * smoothing.rows
    shared = (rows * inputs * passes + table.call * nodes) / readers
    beside = rows * outputs * (0.2 + 0.15 * smoothing.rows) + table.call * (1 + smoothing.rows)
    kept = len(smoothing.outliers)
    if kept:
        beside += rows * (kept * (0.5 + whole * outputs) + 0.15 * outputs) + 3 * table.call
    return whole * product + table.call, table.gain * (integer * product + shared + beside)
