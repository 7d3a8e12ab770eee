"""Raising a model's opset with ONNX's official converter, without losing what the converter does not know."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.version_converter

from onnxsqueeze import codec
from onnxsqueeze.codec import Graph
from onnxsqueeze.errors import ModelError

__all__ = ["raise_opset"]


def raise_opset(graph: Graph, target: int) -> Graph:
    """Return the graph in opset ``target``, itself if it is there already.

    The converter sees a skeleton without weights; weights, model metadata and docs come from ``graph``. Raises ModelError when the converter cannot do it.
    """
    if graph.opset >= target:
        return graph
    before = codec.encode(graph, skeleton=True)
    try:
        after = onnx.version_converter.convert_version(before, target)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelError(f"ONNX's converter cannot raise the model from opset {graph.opset} to {target}: {reason}") from error
    full = codec.encode(graph)
    weights = {key: tensor for key, tensor in _tensors(full.graph)}
    for key, tensor in _tensors(after.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(weights[key])
    for field in ("node", "initializer", "value_info"):
        full.graph.ClearField(field)
        getattr(full.graph, field).extend(getattr(after.graph, field))
    for entry in full.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    full.ir_version = max(before.ir_version, after.ir_version)
    raised = codec.decode(full, graph.folder)
    raised.file = graph.file
    return raised


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the initializers and tensor attributes of a graph and its bodies by a name that conversion keeps."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield f"{node.output[0]}/{attribute.name}", attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
