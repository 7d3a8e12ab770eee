"""Constants, seen through the operators that only hand them on."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph.operators import operator
from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.weights import peek

__all__ = ["Followed", "alone", "constant_of", "constant_value", "followed", "source", "stored"]

_HANDS_ON = ("Identity", "Cast", "Transpose")
_CONSTANT_KINDS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


class Followed(NamedTuple):
    """The constant behind a tensor, None where a Constant node holds numbers, and the nodes passed, nearest first."""

    constant: gs.Constant | None
    passed: list[gs.Node]


def followed(tensor: gs.Tensor, through: Collection[str], *, fixed: bool = False) -> Followed | None:
    """Follow a tensor to its constant through standard operators that hand on their first input.

    ``through`` names them; with "Constant" in it the path may also end at a Constant node, which is the last one passed
    and may hold its value in an attribute of numbers. With ``fixed`` an initializer that the caller may override is
    none.
    """
    passed: list[gs.Node] = []
    while not isinstance(tensor, gs.Constant) or (fixed and getattr(tensor, "overridable", False)):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or operator(node) not in through or node in passed:
            return None
        passed.append(node)
        if node.op == "Constant":
            value = node.attrs.get("value")
            return Followed(value if isinstance(value, gs.Constant) else None, passed)
        tensor = node.inputs[0]
    return Followed(tensor, passed)


def constant_of(tensor: gs.Tensor) -> gs.Constant | None:
    """Return the constant behind a tensor: an initializer, or the value of a Constant node, maybe through Identity."""
    found = followed(tensor, ("Constant", "Identity"))
    return None if found is None else found.constant


def source(tensor: gs.Tensor) -> tuple[gs.Constant, list[int]] | None:
    """Return the constant behind Identity, Cast and Transpose, and its axis for each axis of the tensor."""
    found = followed(tensor, _HANDS_ON)
    if found is None or found.constant is None:
        return None
    axes = list(range(len(found.constant.shape)))
    for node in reversed(found.passed):
        if node.op == "Transpose":
            axes = [axes[i] for i in node.attrs.get("perm") or list(range(len(axes)))[::-1]]
    return found.constant, axes


def alone(tensor: gs.Tensor) -> bool:
    """Return whether the tensor has one reader, and what it is handed on from no other one."""
    found = followed(tensor, ("Constant", *_HANDS_ON))
    path = [] if found is None else [node.inputs[0] for node in found.passed if node.inputs]
    return all(len(each.outputs) == 1 for each in (tensor, *path))


def constant_value(tensor: gs.Tensor) -> Array | None:
    """Return the value of a tensor that is constant, also through Constant, Identity, Cast and Transpose."""
    found = followed(tensor, ("Constant", *_HANDS_ON), fixed=True)
    if found is None:
        return None
    value = _numbers(found.passed[-1]) if found.constant is None else peek(found.constant)
    return _after(found.passed, value)


def _numbers(node: gs.Node) -> Array | None:
    """Return the value of a Constant node that holds numbers."""
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
