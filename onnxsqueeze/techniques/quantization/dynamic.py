"""Layers that quantize their input at run time: what is done about outliers, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.statistics.measured import Statistics
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

    @cached_property
    def found(self) -> list[DynamicLayer]:
        """All of them, in the order of the graph."""
        if "dynamic" not in self.view.target.integers.forms:
            return []
        root = self.layers.root
        static = [n for n in self.layers.static if n.op != "Conv" and not self.stats.range(root(n.inputs[0]).name)]
        groups: dict[int, list[gs.Node]] = {}
        for node in (*self.layers.dynamic, *static):
            groups.setdefault(id(node.inputs[0]), []).append(node)
        found = [layer for group in groups.values() for layer in self._group(group)]
        places = {id(node): i for i, node in enumerate(self.view.nodes)}
        return sorted(found, key=lambda layer: places[id(layer.node)])

    def _group(self, nodes: list[gs.Node]) -> list[DynamicLayer]:
        source = nodes[0].inputs[0]
        moments = None if self.view.in_body(nodes[0]) else self.stats.of(Channels(source.name, -1, True))
        treatment = self._known.get(str(source.name))
        if treatment is None and moments is not None:
            treatment = smoothing(moments, [self.layers.matrix(n) for n in nodes])
        rows = self._rows(source) if moments is None else moments.n / moments.runs
        made = []
        for node in nodes:
            work = Quantized("dynamic", smoothing=treatment, source=str(source.name), moments=moments, kept=self.kept)
            size, known = self.layers.matrix(node).shape, treatment or Smoothing()
            times = run_time_times(size, rows, known, len(nodes), self.view.target.times)
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
