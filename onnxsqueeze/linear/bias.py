"""The bias of a linear layer: the third input of Conv, ConvTranspose and Gemm, which may be left out."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph.view import View

__all__ = ["bias_tensor", "bias_value", "set_bias"]


def bias_tensor(node: gs.Node) -> gs.Tensor | None:
    """Return the bias of a Conv, ConvTranspose or Gemm, None where it is left out."""
    return node.inputs[2] if node.op != "MatMul" and len(node.inputs) > 2 and node.inputs[2].name else None


def bias_value(view: View, node: gs.Node) -> Matrix | float:
    """Return the constant bias of a layer in float64, 0 where there is none."""
    tensor = bias_tensor(node)
    if tensor is None:
        return 0.0
    value: Matrix = np.asarray(view.value(tensor), np.float64).reshape(-1)
    return value


def set_bias(node: gs.Node, tensor: gs.Tensor) -> None:
    """Give a Conv, ConvTranspose or Gemm this bias, whether or not it has one."""
    if len(node.inputs) > 2:
        node.inputs[2] = tensor
    else:
        node.inputs.append(tensor)
