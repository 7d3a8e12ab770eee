"""Sizes of models, without writing them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxsqueeze.ir.encode import encode_with
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.payloads import Skeleton

__all__ = ["file_size", "tensors"]


def file_size(graph: Graph) -> int:
    """Return how many bytes the model takes on disk, data file included, without computing any weight.

    It may be four bytes too few for a model with long lists among its attributes.
    """
    skeleton = Skeleton()
    model = encode_with(graph, skeleton)
    total = skeleton.left_out
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
