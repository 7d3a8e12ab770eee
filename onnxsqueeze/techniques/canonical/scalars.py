"""Constants of one element in elementwise operators."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard

__all__ = ["adds_no_axes", "fits", "scalar_factor"]

LEAST, MOST = 1e-30, 1e30
"""Numbers between these can be multiplied and divided in float32 with all of their digits."""


def adds_no_axes(view: View, node: gs.Node, source: gs.Tensor) -> bool:
    """Return whether the constant beside ``source`` has no more axes than that, so that the result has its shape.

    A constant of one element without axes never has.
    """
    for tensor in node.inputs:
        value = None if tensor is source else view.value(tensor)
        if value is not None and value.ndim:
            shape = view.shape(source)
            if shape is None or value.ndim > len(shape):
                return False
    return True


def fits(*values: float) -> bool:
    """Return whether float32 holds the numbers with all of their digits: none is huge, and none tiny but 0."""
    return all(value == 0 or LEAST < abs(value) < MOST for value in values)


def scalar_factor(view: View, node: gs.Node | None, tensor: gs.Tensor) -> float | None:
    """Return k where the node computes k·tensor."""
    if node is None or node.op not in ("Mul", "Div") or not is_standard(node):
        return None
    slot = 0 if node.inputs[0] is tensor else 1
    other = view.scalar(node.inputs[1 - slot])
    if other is None or not np.isfinite(other) or other == 0 or (node.op == "Div" and slot == 1):
        return None
    return other if node.op == "Mul" else 1 / other
