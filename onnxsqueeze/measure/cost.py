"""What a model costs: bytes, parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.shapes.inferred import Shape, shape_of
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.shapes import inferred_and_measured

__all__ = ["Cost", "cost", "counted", "macs"]


_LINEAR = frozenset(["Conv", "ConvInteger", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "MatMulInteger", "RNN"])


@dataclass(frozen=True)
class Cost:
    """What a model weighs: ``bytes`` of its file(s), stored parameters, multiply-accumulates (None: unknown), nodes."""

    bytes: int
    parameters: int
    macs: int | None
    nodes: int
    opset: int


def cost(graph: Graph, size: int, feed: Mapping[str, NDArray[np.generic]] | None) -> Cost:
    """Return the cost of a graph whose file has ``size`` bytes; MACs are those of one ``feed``.

    They are None without one, and where a linear node cannot be counted: its shapes are known to nobody.

    Parameters are the elements of the initializers and Constant nodes that nodes read, without scalars and int64
    tensors, which are shapes and indices.
    """
    counted: set[int] = set()
    parameters = nodes = 0
    for node, _ in walk(graph):
        nodes += 1
        for tensor in (*node.inputs, *node.attrs.values()):
            if isinstance(tensor, gs.Constant) and id(tensor) not in counted:
                counted.add(id(tensor))
                elements = prod(tensor.shape)
                if elements > 1 and np.dtype(tensor.dtype) != np.int64:
                    parameters += elements
    counts = {} if feed is None else _counts(graph, feed)
    known = [count for count in counts.values() if count is not None]
    total = sum(known) if feed is not None and len(known) == len(counts) else None
    return Cost(size, parameters, total, nodes, int(graph.opset))


def macs(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> dict[str, int]:
    """Return the multiply-accumulates of every linear node by its key, on ``feed``.

    Shapes that cannot be inferred are taken from a run. Nodes of which neither tells are left out. A body counts as if
    it ran once.
    """
    return {key: count for key, count in _counts(graph, feed).items() if count}


def counted(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> tuple[dict[str, int | None], dict[str, Shape]]:
    """Return the multiply-accumulates on ``feed`` of every linear node by its key, and the shapes of tensors by name.

    A count is None where it is not known; of nodes with the same key it is that of all together.
    """
    found: dict[str, int | None] = {}
    seen: dict[str, Shape] = {}
    _count(*inferred_and_measured(graph, feed), found, seen)
    return found, seen


def _counts(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> dict[str, int | None]:
    return counted(graph, feed)[0]


def _count(
    graph: onnx.GraphProto, outer: Mapping[str, Shape], found: dict[str, int | None], seen: dict[str, Shape]
) -> None:
    shapes: dict[str, Shape] = dict(outer)
    for info in (*graph.input, *graph.value_info, *graph.output):
        if (shape := shape_of(info)) is not None:
            shapes[info.name] = shape
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    seen.update(shapes)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    shapes[node.output[0]] = tuple(attribute.t.dims)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _count(attribute.g, shapes, found, seen)
        if node.domain in ("", "ai.onnx") and node.op_type in _LINEAR:
            key, count = next(filter(None, node.output)), _of(node, shapes)
            found[key] = count if count is None else (found.get(key) or 0) + count


def _of(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    inputs = [shapes.get(name) for name in node.input]
    outputs = [shapes.get(name) for name in node.output]
    op = node.op_type
    if len(inputs) < 2 or inputs[0] is None or inputs[1] is None or not outputs:
        return None
    x, w, y = inputs[0], inputs[1], outputs[0]
    if op in ("Conv", "ConvInteger") and y is not None:
        return prod(y) * prod(w[1:])
    if op == "ConvTranspose":
        return prod(x) * prod(w[1:])
    if op in ("MatMul", "MatMulInteger") and y is not None and x:
        return prod(y) * x[-1]
    if op == "Gemm" and y is not None and len(x) == 2:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(y) * (x[0] if transposed else x[1])
    if op in ("LSTM", "GRU", "RNN") and len(inputs) > 2 and inputs[2] is not None and len(x) == 3:
        return x[0] * x[1] * (prod(w) + prod(inputs[2]))
    return None
