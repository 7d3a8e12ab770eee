"""Weights that stay integers in memory: restored at every run, one layer after the other."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.compensation import LARGEST, feedback
from onnxsqueeze.techniques.quantization.emit.weights import (
    HELD,
    ROW,
    FloatArray,
    Kept,
    integers,
    known,
    scales_of,
    values_of,
)
from onnxsqueeze.techniques.quantization.rounding import compensated

__all__ = ["can_be_lean", "lean"]

AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1, "LSTM": 1, "GRU": 1, "RNN": 1}
"""The axis of the weight along which scales lie; that of a Gemm and of a MatMul is laid out as (outputs, inputs)."""


def can_be_lean(node: gs.Node, slot: int) -> bool:
    """Return whether the weight at an input is a float initializer that this node alone reads, in rows long enough.

    A Conv or Gemm that reads integers besides would be computed in integers, which was decided against.
    """
    tensor, source = node.inputs[slot], node.inputs[0]
    if source.inputs and source.inputs[0].op == "DequantizeLinear":
        return False
    if node.op not in AXES or not is_standard(node) or not isinstance(tensor, gs.Constant):
        return False
    if len(tensor.outputs) != 1 or len(tensor.shape) < 2 or np.dtype(tensor.dtype) != np.float32:
        return False
    if node.op == "MatMul" and (slot != 1 or len(tensor.shape) != 2):
        return False
    return int(np.prod(tensor.shape)) >= ROW * int(tensor.shape[_axis(node)])


def lean(
    graph: Graph,
    scope: Graph,
    node: gs.Node,
    slot: int,
    second: FloatArray | None = None,
    source: str = "",
    kept: Kept | None = None,
) -> FloatArray | None:
    """Keep a weight as int8 with a scale per output channel, behind a DequantizeLinear that no runtime folds.

    The matrix of a MatMul or Gemm is laid out as (outputs, inputs), in which restoring it takes a third of the time;
    the Transpose of a MatMul becomes part of it. ONNX Runtime runs a node without inputs right before its reader only
    if it stands in front of all others, and all of them at the beginning otherwise: then every weight would be there in
    float at once.

    ``second`` is ``E[xxᵀ]`` of the input of a MatMul, which the rounding looks at, and ``source`` the input's name.
    Returns the restored values of a weight that is small enough to be held.
    """
    kept = kept or Kept()
    tensor = node.inputs[slot]
    assert isinstance(tensor, gs.Constant)
    if known(graph, tensor) or getattr(tensor, "overridable", False):
        return None
    values, axis, flipped = values_of(tensor), _axis(node), _is_flipped(node)
    if not np.isfinite(values).all():
        return None
    scales = kept.get(lambda: scales_of(values, (axis,)), values, f"channels of {axis}")
    if second is not None and node.op == "MatMul" and values.size <= HELD and len(values) <= LARGEST:

        def fitted() -> NDArray[np.int8]:
            return compensated(values, scales, kept.last(lambda: feedback(second), source, "plain"))

        found = kept.get(fitted, values, "rounded channels")
        q = edit.constant(graph, f"{tensor.name}_int8", np.ascontiguousarray(found.T))
    elif flipped:
        turned = np.ascontiguousarray(scales.T)
        q = integers(graph, tensor.name, values.T, turned, lambda: values_of(tensor).T)
    else:
        q = integers(graph, tensor.name, values, scales, lambda: values_of(tensor))
    scale = edit.constant(graph, f"{tensor.name}_scale", scales.reshape(-1).astype(np.float32))
    # with exact sums ONNX Runtime adds a zero point of its own where none is, of a shape that it then refuses
    zero = edit.constant(graph, f"{tensor.name}_zero_point", np.zeros(scale.shape, np.int8))
    home = edit.home(graph, scope, tensor)
    first, attrs = home.nodes[0], {"axis": 0 if flipped else axis}
    name = f"{tensor.name}_restored"
    restored = edit.insert(graph, home, "DequantizeLinear", [q, scale, zero], name, attrs, before=first)
    if flipped and node.op == "Gemm":
        node.attrs["transB"] = 1
    elif flipped:  # the Reshape does nothing but keep ONNX Runtime from a MatMulNBits, which has a copy of the weight
        shape = edit.constant(graph, f"{tensor.name}_shape", np.array(values.T.shape, np.int64))
        restored = edit.insert(graph, home, "Reshape", [restored, shape], f"{tensor.name}_rows", before=first)
        restored = edit.insert(
            graph, home, "Transpose", [restored], f"{tensor.name}_transposed", {"perm": [1, 0]}, before=first
        )
    node.inputs[slot] = restored
    if values.size > HELD:
        return None
    whole = np.asarray(q.values, np.float32)
    return np.asarray((whole.T if flipped else whole) * scales)


def _axis(node: gs.Node) -> int:
    """Return the axis of the outputs in the weight as it is."""
    return 1 if _is_flipped(node) else AXES[node.op]


def _is_flipped(node: gs.Node) -> bool:
    return node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0))
