"""The bias of a linear layer: the third input of Conv, ConvTranspose and Gemm, which may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph.view import View

__all__ = ["bias_tensor", "bias_value", "set_bias", "shares_inside"]


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


def shares_inside(node: gs.Node, kernel: Sequence[int], shape: Sequence[int | str | None] | None) -> Matrix:
    """Return, per tap of a Conv's kernel, the share of its windows in which the tap lies inside the input.

    Where windows reach into the padding, a tap sees its channel's mean μ in that share of them, and 0 in the others:
    over all windows ``E[W·x] = Σ_t s_t·W_t·μ``. ``shape`` is that of the input (N, C, …); along an axis whose size is
    not known windows count as inside.
    """
    attrs, axes = node.attrs, len(kernel)
    strides, dilations = (list(attrs.get(key) or [1] * axes) for key in ("strides", "dilations"))
    pads, same = list(attrs.get("pads") or [0] * 2 * axes), str(attrs.get("auto_pad") or "NOTSET")
    sizes = list(shape[2:]) if shape is not None and len(shape) == axes + 2 else [None] * axes
    shares = []
    for axis, (taps, size) in enumerate(zip(kernel, sizes, strict=True)):
        reach, stride = (taps - 1) * dilations[axis] + 1, strides[axis]
        if not isinstance(size, int) or size < 1 or same == "VALID":
            shares.append(np.ones(taps))
            continue
        begin, end = pads[axis], pads[axis + axes]
        if same in ("SAME_UPPER", "SAME_LOWER"):
            whole = max((-(-size // stride) - 1) * stride + reach - size, 0)
            begin, end = (whole // 2, whole - whole // 2) if same == "SAME_UPPER" else (whole - whole // 2, whole // 2)
        windows = np.arange(max((size + begin + end - reach) // stride + 1, 1)) * stride - begin
        places = windows[:, None] + np.arange(taps) * dilations[axis]
        shares.append(np.mean((places >= 0) & (places < size), axis=0))
    return np.asarray(reduce(np.multiply.outer, shares, np.ones(())))
