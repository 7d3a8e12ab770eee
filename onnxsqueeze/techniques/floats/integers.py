"""What integers of a quantized model stand for: in scales, along an axis or in blocks, and packed in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_value
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived

__all__ = ["Values", "floats", "given", "refusal", "value_of", "write_nbits", "write_table"]

Values = NDArray[Any]


def value_of(tensor: gs.Tensor) -> Values:
    """Return the value of a tensor that is known to be constant."""
    value = constant_value(tensor)
    assert value is not None  # ``hindrance`` has looked
    return value


def given(node: gs.Node, slot: int) -> Values | None:
    """Return the constant that is an input of a node, None where it is left out."""
    return value_of(node.inputs[slot]) if slot < len(node.inputs) and node.inputs[slot].name else None


def floats(q: Values, scale: Values, zero: Values | None, axis: int, block: int = 0) -> Values:
    """Return ``(q − z)·s``, as DequantizeLinear does."""
    scale, wide = np.asarray(scale, np.float32), q.astype(np.float32)

    def spread(values: Values) -> Values:
        if values.size == 1:
            return values.reshape(())
        if block:
            return np.take(np.repeat(values, block, axis), range(q.shape[axis]), axis)
        shape = [1] * q.ndim
        shape[axis] = -1
        return values.reshape(shape)

    if zero is not None:
        wide = wide - spread(zero.astype(np.float32))
    return np.asarray(wide * spread(scale), np.float32)


def refusal(node: gs.Node) -> str:
    """Return why a node with a weight in blocks has no float form, "" if it has one."""
    bits = int(node.attrs.get("bits", 4))
    if bits not in (2, 4, 8):
        return f"there is no float form for {node.op} of {bits} bits"
    if node.op == "MatMulNBits" and len(node.inputs) > 4 and node.inputs[4].name:
        return "the rows of a weight of MatMulNBits are in another order"
    tables = node.op == "GatherBlockQuantized"
    plain = [int(node.attrs.get(key, default)) for key, default in (("gather_axis", 0), ("quantize_axis", 1))] == [0, 1]
    data = constant_value(node.inputs[0]) if tables else None
    if tables and (not plain or data is None or data.dtype != np.uint8 or data.ndim != 2):
        return "there is no float form for GatherBlockQuantized but of rows of a table of uint8"
    return ""


def _unpacked(codes: Array, bits: int, columns: int) -> NDArray[np.uint8]:
    """Return the integers that are packed along the last axis, from the lowest bits of a byte on."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    whole = codes[..., None] >> shifts & np.uint8((1 << bits) - 1)
    return np.asarray(whole.reshape(*codes.shape[:-1], -1)[..., :columns], np.uint8)


def _rows(codes: Array, scale: Array, zeros: Array | None, bits: int, block: int, columns: int) -> Values:
    """Return a matrix (N, K) of few bits in blocks along K, as MatMulNBits holds it."""
    n, count = len(codes), -(-columns // block)
    q = _unpacked(codes.reshape(n, -1), bits, columns)
    if zeros is None:
        zeros = np.full((n, count), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        zeros = _unpacked(zeros.reshape(n, -1), bits, count)
    scale = np.asarray(scale, np.float32).reshape(n, count)
    return floats(q, scale, zeros.reshape(n, count), 1, block)


def write_nbits(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Write MatMulNBits as MatMul with the weight in floats, and Add if it has a bias."""
    bits, block, columns = (int(node.attrs.get(key, 4)) for key in ("bits", "block_size", "K"))
    held, (scale, zeros) = node.inputs[1], (given(node, slot) for slot in (2, 3))
    assert scale is not None
    shape = (columns, int(node.attrs["N"]))

    def read() -> Values:
        return np.ascontiguousarray(_rows(value_of(held), scale, zeros, bits, block, columns).T)

    weight = edit.constant(graph, f"{held.name}_float", Derived(shape, np.float32, read))
    bias = node.inputs[5] if len(node.inputs) > 5 and node.inputs[5].name else None
    if bias is None:
        edit.replace(graph, scope, node, "MatMul", [node.inputs[0], weight])
        return
    name = f"{node.outputs[0].name}_product"
    x = edit.insert(graph, scope, "MatMul", [node.inputs[0], weight], name, before=node)
    edit.replace(graph, scope, node, "Add", [x, bias])


def write_table(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Write GatherBlockQuantized as Gather of a table in floats."""
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs.get("block_size", 128))
    held, scale, zeros = node.inputs[0], value_of(node.inputs[2]), given(node, 3)
    shape = (held.shape[0], held.shape[1] * 8 // bits)

    def read() -> Values:
        return _rows(value_of(held), scale, zeros, bits, block, shape[1])

    table = edit.constant(graph, f"{held.name}_float", Derived(shape, np.float32, read))
    edit.replace(graph, scope, node, "Gather", [table, node.inputs[1]], {"axis": 0})
