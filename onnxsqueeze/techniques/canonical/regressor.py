"""LinearRegressor of ``ai.onnx.ml``, whose weights are attributes, as the Gemm that it is."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph

__all__ = ["is_regressor", "write_as_gemm"]


def is_regressor(view: View, node: gs.Node) -> bool:
    """Return whether the node computes ``x·Cᵀ + b`` of a float matrix x, and nothing behind it."""
    if node.domain != "ai.onnx.ml" or node.op != "LinearRegressor" or view.opset < 11:
        return False
    if str(node.attrs.get("post_transform", "NONE")) != "NONE" or view.dtype(node.inputs[0]) != np.float32:
        return False
    shape, targets = view.shape(node.inputs[0]), int(node.attrs.get("targets", 1))
    weights, shifts = node.attrs.get("coefficients") or [], node.attrs.get("intercepts") or []
    if shape is None or len(shape) != 2 or targets < 1 or len(shifts) not in (0, targets):
        return False
    return bool(weights) and len(weights) % targets == 0 and bool(np.isfinite([*weights, *shifts]).all())


def write_as_gemm(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Put Gemm in its place."""
    name, targets = node.outputs[0].name, int(node.attrs.get("targets", 1))
    values = np.array(node.attrs["coefficients"], np.float32).reshape(targets, -1)
    inputs = [node.inputs[0], edit.constant(graph, f"{name}_coefficients", values)]
    if node.attrs.get("intercepts"):
        inputs.append(edit.constant(graph, f"{name}_intercepts", np.array(node.attrs["intercepts"], np.float32)))
    edit.replace(graph, scope, node, "Gemm", inputs, {"transB": 1})
