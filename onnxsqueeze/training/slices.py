"""A part of a model as a model: from tensors that are fed to tensors that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

__all__ = ["cut"]


def cut(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return what computes ``outputs`` from the tensors of ``feed``, whose shapes and types its inputs have.

    What is fed is not computed, whether it was an input, an initializer or the output of a node.
    """
    makers = {name: node for node in model.graph.node for name in node.output if name}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    kept: set[int] = set()
    stack = list(outputs)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in makers and name not in feed:
            node = makers[name]
            kept.add(id(node))
            stack.extend(_reads(node))
    graph = helper.make_graph(
        [node for node in model.graph.node if any(id(makers.get(name)) in kept for name in node.output)],
        "slice",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feed.items()
            if name in seen
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for name, tensor in stored.items() if name in seen and name not in feed],
        sparse_initializer=[each for each in model.graph.sparse_initializer if each.values.name in seen - set(feed)],
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    made.ir_version = model.ir_version
    return made


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, what its bodies take from around them included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            for inner in body.node:
                yield from _reads(inner)
            yield from (value.name for value in body.output)
