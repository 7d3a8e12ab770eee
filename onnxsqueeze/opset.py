"""Raising a model's opset with ONNX's official converter, without losing what the converter does not know."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_graphsurgeon as gs

from onnxsqueeze import codec
from onnxsqueeze.codec import Graph
from onnxsqueeze.errors import ModelError
from onnxsqueeze.view import walk

__all__ = ["raise_opset"]


def raise_opset(graph: Graph, target: int) -> Graph:
    """Return the graph in opset ``target``, itself if it is there already.

    The converter sees a skeleton without weights (so a model over 2 GB is no problem); weights, model metadata and
    names come from ``graph``. Raises ModelError when the converter cannot do it.
    """
    if graph.opset >= target:
        return graph
    weights = {t.name: t for node, _ in walk(graph) for t in node.inputs if isinstance(t, gs.Constant)}
    before = codec.encode(graph, skeleton=True)
    try:
        after = onnx.version_converter.convert_version(before, target)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelError(f"ONNX's converter cannot raise the model from opset {graph.opset} to {target}: {reason}") from error
    shell = onnx.ModelProto()
    shell.CopyFrom(before)
    shell.graph.CopyFrom(after.graph)
    shell.graph.doc_string = before.graph.doc_string
    shell.graph.metadata_props.extend(before.graph.metadata_props)
    for entry in shell.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    shell.ir_version = max(before.ir_version, after.ir_version)
    raised = codec.decode(shell, graph.folder)
    for node, _ in walk(raised):
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name in weights:
                tensor._values = weights[tensor.name]._values
    return raised
