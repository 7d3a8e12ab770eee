"""How long a model is predicted to take on a target, from the times in its profile: float and int8, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.shapes import activations
from onnxsqueeze.targets.times import UNBLOCKED, Times

__all__ = ["Forecast"]

Feed = Mapping[str, NDArray[np.generic]]
LAYERS = ("Conv", "Gemm", "MatMul")
MOVES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant", "Dropout")
"""Operators that only hand on what they read."""
FOLLOWS = ("BatchNormalization", "Relu", "Clip", "HardSigmoid", "LeakyRelu", "Add", "Cast", "Mul")
"""Operators that become part of the layer in front of them: an activation, and what follows MatMulInteger."""
OTHER = 0.4
"""Nanoseconds per output of an operator in float of which a profile says nothing, as times of ort-x64 go."""
SLOW = {"Softmax": 2.0, "LayerNormalization": 1.0, "Erf": 1.5, "Gelu": 1.5, "Tanh": 1.5, "Exp": 1.5, "Pow": 1.5}
"""The same of those that take much longer."""
BODIES = ("If", "Loop", "Scan")
RECURRENT = ("LSTM", "GRU", "RNN")


class Forecast:
    """The nodes of a graph with their sizes on one feed, from which times are predicted for any target.

    What reads and makes Q/DQ pairs counts as computing in integers; nodes of constants count nothing, nor those that a
    kernel takes over. The rest is counted by the profile, by guesses where it says nothing.
    """

    def __init__(self, graph: Graph, feed: Feed) -> None:
        self.view = View(graph)
        self.shapes = {name: shape for name, (shape, _) in activations(graph, feed).items()}
        self.shapes |= {name: value.shape for name, value in feed.items()}
        self.fixed: set[int] = set()
        for node in graph.nodes:  # in order
            if node.inputs and all(self._is_fixed(tensor) for tensor in node.inputs):
                self.fixed.update(id(tensor) for tensor in node.outputs)
        self.integer = {id(node) for node in graph.nodes if self._is_integer(node)}
        self.complete = not any(node.op in BODIES for node in graph.nodes)
        """Whether all nodes are looked at: those in bodies are not."""
        self.nodes = [node for node in graph.nodes if not node.inputs or not all(map(self._is_fixed, node.inputs))]
        self.restored = [n for n in graph.nodes if n.op == "DequantizeLinear" and self._is_fixed(n.inputs[0])]

    def nanoseconds(self, times: Times) -> float:
        """Return what a run takes."""
        total = sum(self._of(node, times) for node in self.nodes)
        for node in self.restored:
            readers = [reader for reader in node.outputs[0].outputs if id(reader) not in self.integer]
            total += times.dequantize * self._size(node.outputs[0]) if readers and self._is_large(node) else 0.0
        return total

    def _is_large(self, node: gs.Node) -> bool:
        return self._size(node.outputs[0]) > 1024

    def _is_fixed(self, tensor: gs.Tensor) -> bool:
        return isinstance(tensor, gs.Constant) or not tensor.name or id(tensor) in self.fixed

    def _size(self, tensor: gs.Tensor) -> float:
        return float(prod(self.shapes.get(str(tensor.name), (0,))))

    def _from_integers(self, tensor: gs.Tensor) -> bool:
        maker = self.view.producer(tensor)
        return maker is not None and maker.op == "DequantizeLinear" and is_standard(maker)

    def _is_integer(self, node: gs.Node) -> bool:
        """Whether a node stands between Q/DQ pairs: one behind an activation counts, and none is needed behind Gemm."""
        if node.op in ("QuantizeLinear", "DequantizeLinear") or not node.inputs or not node.outputs:
            return False
        count = {"Concat": len(node.inputs)}.get(node.op, 2 if node.op in (*LAYERS, "Add", "Mul") else 1)
        data = node.inputs[:count]
        if not all(map(self._from_integers, data)):
            return False
        reader = self.view.only_consumer(node.outputs[0])
        if reader is not None and reader.op in FOLLOWS:
            reader = self.view.only_consumer(reader.outputs[0])
        return node.op in ("Gemm", "MatMul") or (reader is not None and reader.op == "QuantizeLinear")

    def _of(self, node: gs.Node, times: Times) -> float:
        size, integer, op = self._size(node.outputs[0]), id(node) in self.integer, node.op
        if op in MOVES or op in BODIES:
            return 0.0
        if op in LAYERS:
            weight = self._weight(node)
            if weight is None:  # two activations
                inner = (self.shapes.get(str(node.inputs[0].name)) or (1,))[-1]
                return times.call + size * times.run_time[0] * inner
            group, transposed = int(node.attrs.get("group", 1)), bool(node.attrs.get("transB", 0))
            if op == "MatMul" and not integer:
                return times.call + size * times.run_time[0] * weight[-2] + times.weight[0] * prod(weight)
            lost = UNBLOCKED if op == "Conv" and not integer and self._from_integers(node.inputs[1]) else 0.0
            return times.call + (1 + lost) * times.layer(op, weight, size, group, transposed)[integer]
        if op == "MatMulInteger":
            shape = self.shapes.get(str(node.inputs[0].name)) or (1,)
            return times.call + size * (times.run_time[1] * shape[-1] + 0.2)
        if op in RECURRENT:
            return self._recurrent(node, times)
        maker = self.view.producer(node.inputs[0]) if node.inputs else None
        if op == "QuantizeLinear":
            inside = maker is not None and (id(maker) in self.integer or self._ends(maker))
            return 0.0 if inside else times.call + times.quantize * size
        if op == "DequantizeLinear":
            readers = node.outputs[0].outputs
            inside = bool(readers) and all(id(reader) in self.integer for reader in readers)
            return 0.0 if inside else times.call + times.dequantize * size
        if op == "DynamicQuantizeLinear":
            return times.call + 0.35 * size
        if op in FOLLOWS and maker is not None and (self._ends(node) or id(maker) in self.integer):
            return 0.0
        if op in times.carry:
            return times.call + times.carried(op, size)[integer]
        return times.call + SLOW.get(op, OTHER) * size

    def _ends(self, node: gs.Node) -> bool:
        """Whether a node belongs to the layer in front of it."""
        if node.op not in FOLLOWS:
            return False
        makers = [self.view.producer(tensor) for tensor in node.inputs]
        inside = ("MatMulInteger",) if node.op in ("Cast", "Mul") else LAYERS
        near = [maker for maker in makers if maker is not None and maker.op in (*inside, "Cast")]
        return any(self.view.only_consumer(maker.outputs[0]) is node for maker in near)

    def _weight(self, node: gs.Node) -> tuple[int, ...] | None:
        tensor = node.inputs[1]
        if not self._is_fixed(tensor):
            return None
        if isinstance(tensor, gs.Constant):
            return tuple(int(size) for size in tensor.shape)
        return self.shapes.get(str(tensor.name)) or self.view.shape(tensor)  # type: ignore[return-value]

    def _recurrent(self, node: gs.Node, times: Times) -> float:
        shapes = [self.shapes.get(str(t.name)) or self.view.shape(t) for t in node.inputs[:3]]
        if not all(shape and all(isinstance(size, int) for size in shape) for shape in shapes):
            return times.call
        x, w, r = ([int(size) for size in shape or () if isinstance(size, int)] for shape in shapes)
        return times.call + x[0] * x[1] * (prod(w) + prod(r)) * times.run_time[0]
