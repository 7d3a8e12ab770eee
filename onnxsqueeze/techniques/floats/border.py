"""Inputs and outputs of a model in 16-bit floats: Casts between them and what computes in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.dtypes import element_type
from onnxsqueeze.ir.objects import Graph

__all__ = ["given", "halve_border", "made"]


def given(graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    """Let all that reads a 16-bit input of the model read it through a Cast to float32; return what that makes."""
    readers, to = list(tensor.outputs), {"to": int(TensorProto.FLOAT)}
    wide = edit.insert(graph, graph, "Cast", [tensor], f"{tensor.name}_float32", to, before=graph.nodes[0])
    edit.redirect(tensor, wide, only=readers)
    return wide


def made(graph: Graph, tensor: gs.Tensor) -> None:
    """Let a 16-bit output of the model be a Cast of what its node makes in float32."""
    maker, raw = tensor.inputs[0], edit.variable(graph, f"{tensor.name}_float32")
    maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = raw
    edit.redirect(tensor, raw)
    edit.insert(graph, graph, "Cast", [raw], [tensor], {"to": element_type(tensor.dtype)}, after=maker)


def halve_border(graph: Graph, name: str, dtype: np.dtype[Any]) -> None:
    """Make a float32 input or output of the model one of a 16-bit type; what computes in that type needs no Cast."""
    tensor = next(t for t in (*graph.inputs, *graph.outputs) if t.name == name)
    tensor.dtype = dtype
    if tensor.inputs:
        _halve_output(graph, tensor, dtype)
        return
    wide = given(graph, tensor)
    for node in list(wide.outputs):
        if _casts(node, dtype) and not any(node.outputs[0] is t for t in graph.outputs):
            edit.redirect(node.outputs[0], tensor)


def _halve_output(graph: Graph, tensor: gs.Tensor, dtype: np.dtype[Any]) -> None:
    maker = tensor.inputs[0]
    half = maker.inputs[0] if maker.op == "Cast" else tensor
    if half.dtype != dtype or half is tensor or not half.inputs or tensor.outputs:
        made(graph, tensor)
        return
    node = half.inputs[0]
    edit.remove(graph, maker)
    node.outputs[next(i for i, t in enumerate(node.outputs) if t is half)] = tensor
    edit.redirect(half, tensor)


def _casts(node: gs.Node, dtype: np.dtype[Any]) -> bool:
    return node.op == "Cast" and int(node.attrs.get("to", 0)) == element_type(dtype)
