"""Constants, seen through the operators that only hand them on."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph.operators import operator
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.weights import peek

__all__ = ["constant_of", "constant_value", "source", "stored"]

_CONSTANT_KINDS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def constant_of(tensor: gs.Tensor) -> gs.Constant | None:
    """Return the constant behind a tensor: an initializer, or the value of a Constant node, maybe through Identity."""
    node = None
    while not isinstance(tensor, gs.Constant):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.op not in ("Constant", "Identity") or node.domain not in (None, "", "ai.onnx"):
            return None
        if node.op == "Constant":
            break
        tensor = node.inputs[0]
    else:
        return tensor
    value = node.attrs.get("value")
    return value if isinstance(value, gs.Constant) else None


def source(tensor: gs.Tensor) -> tuple[gs.Constant, list[int]] | None:
    """Return the constant behind Identity, Cast and Transpose, and its axis for each axis of the tensor."""
    steps: list[gs.Node] = []
    while not isinstance(tensor, gs.Constant):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or operator(node) not in ("Identity", "Cast", "Transpose") or node in steps:
            return None
        steps.append(node)
        tensor = node.inputs[0]
    axes = list(range(len(tensor.shape)))
    for node in reversed(steps):
        if node.op == "Transpose":
            axes = [axes[i] for i in node.attrs.get("perm") or list(range(len(axes)))[::-1]]
    return tensor, axes


def constant_value(tensor: gs.Tensor) -> Array | None:
    """Return the value of a tensor that is constant, also through Constant, Identity, Cast and Transpose."""
    steps: list[gs.Node] = []
    while not (isinstance(tensor, gs.Constant) and not getattr(tensor, "overridable", False)):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or not is_standard(node) or node in steps:
            return None
        if node.op == "Constant":
            return _after(steps, _constant_value(node))
        if node.op not in ("Identity", "Cast", "Transpose"):
            return None
        steps.append(node)
        tensor = node.inputs[0]
    return _after(steps, peek(tensor))


def _constant_value(node: gs.Node) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return peek(value)
    for name, dtype in _CONSTANT_KINDS.items():
        if name in node.attrs:
            return np.asarray(node.attrs[name], dtype)
    return None


def _after(steps: list[gs.Node], value: Array | None) -> Array | None:
    """Return what the value has become after the steps, the last of which comes first."""
    for node in reversed(steps):
        if value is None:
            break
        if node.op == "Transpose":
            value = np.transpose(value, node.attrs.get("perm"))
        elif node.op == "Cast":
            target = numpy_type(int(node.attrs.get("to", 0)))
            # 8-bit floats saturate in ONNX and do not in NumPy; text is formatted otherwise
            known = target is not None and (target.kind in "fiub" or target.name == "bfloat16")
            if target is None or not known or target.name.startswith("float8") or value.dtype.kind == "O":
                return None
            with np.errstate(all="ignore"):
                value = value.astype(target)
    return value


def stored(tensor: gs.Tensor) -> tuple[gs.Constant | None, gs.Constant | None, gs.Constant | None, int]:
    """Return the constant behind a tensor, and scale, zero point and axis if it is dequantized on the way."""
    constant = constant_of(tensor)
    node = tensor.inputs[0] if constant is None and tensor.inputs else None
    if node is None or node.op != "DequantizeLinear":
        return constant, None, None, 0
    scale = constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    known = scale is not None and not node.attrs.get("block_size", 0)
    return (constant_of(node.inputs[0]) if known else None), scale, zero, int(node.attrs.get("axis", 1))
