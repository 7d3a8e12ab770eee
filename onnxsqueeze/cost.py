"""What a model costs: bytes, parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import codec
from onnxsqueeze.codec import Graph
from onnxsqueeze.dtypes import numpy_type
from onnxsqueeze.report import Cost
from onnxsqueeze.view import walk

__all__ = ["activations", "cost", "file_size", "macs", "tensors"]

Shape = tuple[int, ...]


def cost(graph: Graph, size: int, feed: Mapping[str, NDArray[np.generic]] | None) -> Cost:
    """Return the cost of a graph whose file has ``size`` bytes; MACs are those of one ``feed``, None without one.

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
    return Cost(size, parameters, None if feed is None else sum(macs(graph, feed).values()), nodes, int(graph.opset))


def file_size(graph: Graph) -> int:
    """Return how many bytes the model takes on disk, data file included, without computing any weight."""
    model = codec.encode(graph, skeleton=True)
    total = 0
    for tensor in tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += sum(int(entry.value) for entry in tensor.external_data if entry.key == "length")
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return total + int(model.ByteSize())


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers and tensor attributes of the graph, its bodies and the functions."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while stack:
        body = stack.pop()
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
        for node in body.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                stack += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs


def macs(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> dict[str, int]:
    """Return the multiply-accumulates of every linear node by its key, for the input shapes of ``feed``.

    Nodes whose shapes cannot be inferred are left out. A body counts as if it ran once.
    """
    found: dict[str, int] = {}
    _count(_inferred(graph, feed), {}, found)
    return found


def activations(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> dict[str, tuple[Shape, np.dtype[np.generic]]]:
    """Return shape and type of every tensor that the main graph computes, for the input shapes of ``feed``.

    Tensors whose shape or type cannot be inferred are left out.
    """
    found: dict[str, tuple[Shape, np.dtype[np.generic]]] = {}
    inferred = _inferred(graph, feed)
    for info in (*inferred.value_info, *inferred.output):
        shape, dtype = _shape(info), numpy_type(info.type.tensor_type.elem_type)
        if shape is not None and dtype is not None:
            found[info.name] = shape, dtype
    return found


def _inferred(graph: Graph, feed: Mapping[str, NDArray[np.generic]]) -> onnx.GraphProto:
    """Return the graph without weights, its shapes inferred from those of ``feed``."""
    model = codec.encode(graph, skeleton=True)
    for value in model.graph.input:
        if value.name in feed and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=d) for d in feed[value.name].shape)
    # stale symbolic shapes of intermediates would stop inference from using the concrete ones
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    with suppress(Exception):  # what cannot be inferred is not counted
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return model.graph


def _shape(info: onnx.ValueInfoProto) -> Shape | None:
    kind = info.type.tensor_type
    if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return tuple(d.dim_value for d in kind.shape.dim)


def _count(graph: onnx.GraphProto, outer: Mapping[str, Shape], found: dict[str, int]) -> None:
    shapes: dict[str, Shape] = dict(outer)
    for info in (*graph.input, *graph.value_info, *graph.output):
        if (shape := _shape(info)) is not None:
            shapes[info.name] = shape
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
        if node.domain in ("", "ai.onnx"):
            count = _of(node, shapes)
            if count:
                key = next(filter(None, node.output))
                found[key] = found.get(key, 0) + count


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
