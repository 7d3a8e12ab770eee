"""What a model costs: bytes, parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import codec
from onnxsqueeze.codec import Graph
from onnxsqueeze.report import Cost
from onnxsqueeze.view import walk

__all__ = ["cost", "file_size", "macs"]

Shape = tuple[int, ...]


def cost(graph: Graph, size: int, feed: Mapping[str, NDArray[np.generic]] | None) -> Cost:
    """Return the cost of a graph whose file has ``size`` bytes; MACs are those of one ``feed``, None without one.

    Parameters are the elements of floating-point and integer initializers and Constant nodes that nodes read,
    without scalars and shape-like int64 vectors.
    """
    counted: set[int] = set()
    parameters = nodes = 0
    for node, _ in walk(graph):
        nodes += 1
        tensors = [t for t in node.inputs if isinstance(t, gs.Constant)]
        tensors += [v for v in node.attrs.values() if isinstance(v, gs.Constant)]
        for tensor in tensors:
            if id(tensor) not in counted:
                counted.add(id(tensor))
                elements = prod(int(d) for d in tensor.shape)
                if elements > 1 and np.dtype(tensor.dtype) != np.int64:
                    parameters += elements
    return Cost(size, parameters, None if feed is None else sum(macs(graph, feed).values()), nodes, int(graph.opset))


def file_size(graph: Graph) -> int:
    """Return how many bytes the model takes on disk, data file included, without computing any weight."""
    skeleton = codec.encode(graph, skeleton=True)
    total, stack = skeleton.ByteSize(), [skeleton.graph]
    while stack:
        body = stack.pop()
        tensors = list(body.initializer)
        for node in body.node:
            tensors += [a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
            stack += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
                total += prod(tensor.dims) * dtype.itemsize
    return int(total)


def macs(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> dict[str, int]:
    """Return the multiply-accumulates of every linear node by its key, for the input shapes of ``feed``.

    Nodes whose shapes cannot be inferred are left out. A body counts as if it ran once.
    """
    model = codec.encode(graph, skeleton=True)
    for value in model.graph.input:
        if value.name in feed:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=d) for d in feed[value.name].shape)
    # stale symbolic shapes of intermediates would stop inference from using the concrete ones
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:
        return {}
    found: dict[str, int] = {}
    _count(model.graph, {}, found)
    return found


def _count(graph: onnx.GraphProto, outer: Mapping[str, Shape], found: dict[str, int]) -> None:
    shapes: dict[str, Shape] = dict(outer)
    for info in (*graph.input, *graph.value_info, *graph.output):
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[info.name] = tuple(d.dim_value for d in kind.shape.dim)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    shapes[node.output[0]] = tuple(attribute.t.dims)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _count(attribute.g, shapes, found)
        count = _of(node, shapes)
        if count:
            found[next(name for name in node.output if name)] = count


def _of(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    inputs = [shapes.get(name) for name in node.input]
    outputs = [shapes.get(name) for name in node.output]
    op = node.op_type
    if len(inputs) < 2 or inputs[0] is None or inputs[1] is None or not outputs:
        return 0
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
    return 0


