"""Weights that are only stored as integers, in blocks with a scale each."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
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
    Integers,
    Kept,
    integers,
    known,
    reader,
    remember,
    scales_of,
    values_of,
    wide_scales,
)
from onnxsqueeze.techniques.quantization.rounding import compensated

__all__ = ["stored"]


def stored(
    graph: Graph,
    scope: Graph,
    node: gs.Node,
    slot: int,
    wide: bool = False,
    second: FloatArray | None = None,
    source: str = "",
    kept: Kept | None = None,
) -> FloatArray | None:
    """Keep a weight as int8 in blocks with a scale each, restored by Cast, Mul and Reshape when the model is loaded.

    ``wide``: as int16, which restores it all but exactly. ``second`` is ``E[xxᵀ]`` of the input of a MatMul, which the
    rounding looks at, and ``source`` the input's name.

    The table of a Gather stays integers in memory too: only the rows that are read are restored. Integers that layers
    multiply by, or that a Gather reads, serve the other readers as well. Returns the restored values of a weight that
    is small enough to be held.
    """
    kept = kept or Kept()
    tensor = node.inputs[slot]
    if not isinstance(tensor, gs.Constant) or np.dtype(tensor.dtype) != np.float32:
        return None  # another node that shares the weight has stored it already
    if getattr(tensor, "overridable", False):
        return None  # another weight of the node is the one to store
    values = values_of(tensor)
    if not np.isfinite(values).all():
        return None
    made = min(known(graph, tensor), key=lambda each: each.factor is not None, default=None)
    if _is_lookup(node) and (made is None or made.factor is None or made.axis == 0):
        by_rows = len(values) * ROW <= values.size if values.ndim else False
        alone = all(map(_is_lookup, tensor.outputs))
        if made is None and by_rows and alone:
            made = _by_rows(graph, tensor, values, kept, wide)
        if made is not None:
            _gathered(graph, scope, node, made)
            return None
    if made is not None:
        _restored(graph, scope, tensor, made)
        return None
    blocks = (-1, _block(values.shape))
    flat = values.reshape(blocks)
    if wide:
        scales = wide_scales(flat)
        q = integers(graph, tensor.name, flat, scales, lambda: values_of(tensor).reshape(blocks), wide=True)
    else:
        scales = kept.get(lambda: scales_of(flat, (0,)), flat, "blocks")
        if second is not None and node.op == "MatMul" and values.size <= HELD and len(values) <= LARGEST:
            every = np.repeat(scales.reshape(-1), blocks[1]).reshape(values.shape)

            def fitted() -> NDArray[np.int8]:
                return compensated(values, every, kept.last(lambda: feedback(second), source, "plain"))

            found = kept.get(fitted, values, "rounded blocks")
            q = edit.constant(graph, f"{tensor.name}_int8", np.ascontiguousarray(found.reshape(flat.shape)))
        else:
            q = integers(graph, tensor.name, flat, scales, lambda: values_of(tensor).reshape(blocks))
    scale = edit.constant(graph, f"{tensor.name}_scale", scales)
    home = edit.home(graph, scope, tensor)
    first = home.nodes[0]
    cast = edit.insert(graph, home, "Cast", [q], f"{tensor.name}_cast", {"to": onnx.TensorProto.FLOAT}, before=first)
    restored = edit.insert(graph, home, "Mul", [cast, scale], f"{tensor.name}_blocks", before=first)
    if flat.shape != values.shape:
        shape = edit.constant(graph, f"{tensor.name}_shape", np.array(values.shape, np.int64))
        restored = edit.insert(graph, home, "Reshape", [restored, shape], f"{tensor.name}_restored", before=first)
    edit.redirect(tensor, restored)
    if values.size > HELD:
        return None
    return np.asarray((np.asarray(q.values, np.float32) * scales).reshape(values.shape))


def _block(shape: Sequence[int]) -> int:
    """Return how many neighbouring weights share a scale: a divisor of the row from 32 to 64 if it has one.

    Rows of under 8 weights share a scale with their neighbours: on their own, scales would outweigh them.
    """
    total, row = prod(shape), prod(shape[1:]) if len(shape) > 1 else shape[0]
    if row < ROW:
        return next((d for d in range(64, ROW - 1, -1) if total % d == 0), total)
    if row <= 64:
        return row
    return next((d for d in range(64, 31, -1) if row % d == 0), row)


def _is_lookup(node: gs.Node) -> bool:
    return bool(node.op == "Gather" and is_standard(node) and node.attrs.get("axis", 0) == 0)


def _restored(graph: Graph, scope: Graph, tensor: gs.Constant, made: Integers) -> None:
    """Let what still reads the float weight read its integers, restored when the model is loaded."""
    home = edit.home(graph, scope, tensor)
    first, to = home.nodes[0], {"to": onnx.TensorProto.FLOAT}
    rest = [-1 if axis == made.axis else 1 for axis in range(len(tensor.shape))]
    scale = _shaped(graph, home, made.scale, rest, first)
    cast = edit.insert(graph, home, "Cast", [made.q], f"{tensor.name}_cast", to, before=first)
    restored = edit.insert(graph, home, "Mul", [cast, scale], f"{tensor.name}_restored", before=first)
    if made.factor is not None:
        back = (1 / made.factor).astype(np.float32).reshape([1 if size == -1 else -1 for size in rest])
        whole = edit.constant(graph, f"{tensor.name}_factor", back)
        restored = edit.insert(graph, home, "Mul", [restored, whole], f"{tensor.name}_unscaled", before=first)
    edit.redirect(tensor, restored)


def _shaped(graph: Graph, scope: Graph, scale: gs.Constant, shape: Sequence[int], before: gs.Node) -> gs.Tensor:
    """Return a vector of scales in another shape, which it has when the model is loaded."""
    if not scale.shape or len(shape) == len(scale.shape) or shape[-1] == -1:
        return scale
    wanted = edit.constant(graph, f"{scale.name}_shape", np.array(shape, np.int64))
    return edit.insert(graph, scope, "Reshape", [scale, wanted], f"{scale.name}_shaped", before=before)


def _by_rows(graph: Graph, tensor: gs.Constant, values: FloatArray, kept: Kept, wide: bool) -> Integers:
    if wide:
        scales = wide_scales(values.reshape(len(values), -1)).reshape(-1, *(1,) * (values.ndim - 1))
    else:
        scales = kept.get(lambda: scales_of(values, (0,)), values, "rows")
    q = integers(graph, tensor.name, values, scales, reader(tensor), wide)
    return remember(graph, Integers(tensor, q, edit.constant(graph, f"{tensor.name}_scale", scales), 0))


def _gathered(graph: Graph, scope: Graph, node: gs.Node, made: Integers) -> None:
    """Gather int8 rows and their scales, and multiply: only the rows that are read are restored."""
    output, indices = node.outputs[0], node.inputs[1]
    rows = edit.insert(graph, scope, "Gather", [made.q, indices], f"{output.name}_int8", {"axis": 0}, before=node)
    rest = [-1 if axis == made.axis else 1 for axis in range(len(made.q.shape))]
    scale = _shaped(graph, scope, made.scale, rest, node)
    if made.axis == 0 and made.scale.shape:
        scale = edit.insert(graph, scope, "Gather", [scale, indices], f"{output.name}_scale", {"axis": 0}, before=node)
    cast = edit.insert(graph, scope, "Cast", [rows], f"{output.name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node)
    if made.factor is not None:
        back = edit.constant(graph, f"{made.constant.name}_factor", (1 / made.factor).astype(np.float32))
        scale = edit.insert(graph, scope, "Mul", [scale, back], f"{output.name}_unscaled", before=node)
    edit.replace(graph, scope, node, "Mul", [cast, scale])
