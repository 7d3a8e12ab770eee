"""Quantized models as float ones: Q/DQ pairs, QLinear operators, what is quantized at run time, blocks of few bits.

Weights become the floats that their integers stand for. What flows between operators is rounded no more; it is still
cut off at 0 where a zero point at the end of the range did that, as it does for a Relu that a quantizer has removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_value
from onnxsqueeze.graph.operators import QUANTIZED
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived
from onnxsqueeze.measure.evaluated import evaluated

__all__ = ["hindrance", "in_integers", "restore"]

Values = NDArray[Any]
MOVES = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Reshape"),
    *("Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
"""Operators that move or choose integers, and do the same to floats."""
SAME = tuple(f"QLinear{op}" for op in ("Sigmoid", "LeakyRelu", "Softmax", "GlobalAveragePool", "AveragePool"))
"""QLinear operators of one input, which are the float one of the same attributes."""
LAYOUT = ("channels_last", "opset")


def in_integers(view: View) -> gs.Node | None:
    """Return the first node that quantizes or computes on what is quantized, None if there is none."""
    return next((node for node in view.nodes if _is_quantized(node)), None)


def hindrance(view: View) -> str:
    """Return why a quantized model cannot be written in floats, "" if it can."""
    graph = view.graph.copy()
    _settle(graph)
    return _hindrance(View(graph))


def _settle(graph: Graph) -> None:
    """Make constants of what nodes compute of constants alone, such as integers of few bits that they unpack."""
    view, fixed = View(graph), set[int]()
    for node in view.nodes:
        known = [
            constant_value(t) is not None or (t.inputs and id(t.inputs[0]) in fixed) for t in node.inputs if t.name
        ]
        if known and all(known) and not _is_quantized(node) and len(node.outputs) == 1 and not view.in_body(node):
            fixed.add(id(node))
    read = {id(t): t for node in view.nodes if _is_quantized(node) for t in node.inputs if t.inputs}
    makers = [t.inputs[0] for t in read.values() if id(t.inputs[0]) in fixed and constant_value(t) is None]
    for key, value in evaluated(view, makers).items():
        node, _ = edit.find(graph, key)
        edit.redirect(node.outputs[0], edit.constant(graph, key, value))


def _hindrance(view: View) -> str:
    if view.graph.functions:
        return "local functions may be written for integers"
    flowing = {id(t): t for t in _flowing(view.graph)}
    if any(id(t) in flowing for t in view.graph.outputs):
        return "an output of the model holds integers"
    for node, _ in walk(view.graph):
        known = node.op in _WRITERS
        if _is_quantized(node) and (not known or node.attrs.get("channels_last", 0)):
            return f"there is no float form for {node.op}{'' if not known else ' with channels at the end'}"
        if not known and node.op not in MOVES and any(id(t) in flowing for t in node.inputs):
            return f"{node.op} computes on integers"
        if node.op in ("MatMulInteger", "ConvInteger"):
            maker = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
            if maker is None or maker.op != "DynamicQuantizeLinear" or constant_value(node.inputs[1]) is None:
                return f"the input of {node.op} is not quantized right in front of it"
        if known and any(t.name and constant_value(t) is None for t in _parameters(node)):
            return f"scales of {node.op} are computed"
        if node.op in ("MatMulNBits", "GatherBlockQuantized") and (reason := _blocked(node)):
            return reason
    return ""


def restore(graph: Graph) -> None:
    """Write a quantized model in floats."""
    _settle(graph)
    flowing = list(_flowing(graph))
    outside = {id(t) for t in (*graph.inputs, *graph.outputs)}
    for node, scope in list(walk(graph)):
        if _is_quantized(node):
            _WRITERS[node.op](graph, scope, node)
    for tensor in flowing:
        if id(tensor) not in outside and not isinstance(tensor, gs.Constant):
            tensor.dtype = np.dtype(np.float32)


def _is_quantized(node: gs.Node) -> bool:
    return node.op in QUANTIZED or node.op.startswith("QLinear")


def _flowing(graph: Graph) -> Iterator[gs.Tensor]:
    """Yield the tensors that hold quantized activations, sums of them included."""
    seen: set[int] = set()
    stack = [t for node, _ in walk(graph) if _is_quantized(node) for t in node.outputs[:1]]
    stack = [t for t in stack if not t.inputs or t.inputs[0].op not in _FLOAT_OUT]
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield tensor
        for reader in tensor.outputs:
            if (reader.op in MOVES and reader.inputs[0] is tensor) or reader.op == "Concat":
                stack += list(reader.outputs[:1] if reader.op == "MaxPool" else reader.outputs)


_FLOAT_OUT = ("DequantizeLinear", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


def _parameters(node: gs.Node) -> list[gs.Tensor]:
    """Return the scales and zero points of a node that have to be constants."""
    if node.op in ("QuantizeLinear", "DequantizeLinear", *SAME):
        return list(node.inputs[1:])
    if node.op in ("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm"):
        return [t for i, t in enumerate(node.inputs) if i not in (0, 3)]
    if node.op == "QLinearConcat":
        return [t for i, t in enumerate(node.inputs) if i < 2 or i % 3 != 2]
    return list(node.inputs[1:4]) if node.op == "MatMulNBits" else []


# ---------------------------------------------------------------------------------------------------- numbers


def _value(tensor: gs.Tensor) -> Values:
    value = constant_value(tensor)
    assert value is not None  # ``hindrance`` has looked
    return value


def _given(node: gs.Node, slot: int) -> Values | None:
    return _value(node.inputs[slot]) if slot < len(node.inputs) and node.inputs[slot].name else None


def _floats(q: Values, scale: Values, zero: Values | None, axis: int, block: int = 0) -> Values:
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


def _constant(graph: Graph, hint: str, values: Values) -> gs.Constant:
    return edit.constant(graph, hint, values)


def _either(graph: Graph, node: gs.Node, slot: int, axis: int) -> gs.Tensor:
    """Return an operand of a QLinear operator: what flows, or the floats of a constant; scale and zero stand behind."""
    tensor = node.inputs[slot]
    q = constant_value(tensor)
    if q is None:
        return tensor
    values = _floats(q, _value(node.inputs[slot + 1]), _given(node, slot + 2), axis)
    return _constant(graph, f"{tensor.name}_float", values)


def _bottom(scale: Values | None, zero: Values | None) -> bool:
    """Return whether a range of integers begins with the one that stands for 0."""
    if zero is None:
        return scale is not None
    return bool((zero == np.iinfo(zero.dtype).min).all())


def _put(
    graph: Graph, scope: Graph, node: gs.Node, op: str, inputs: list[gs.Tensor], attrs: dict[str, object], cut: bool
) -> None:
    """Put a float operator in the place of a node, with a Relu behind it if negative values were cut off."""
    if not cut:
        edit.replace(graph, scope, node, op, inputs, attrs)
        return
    x = edit.insert(graph, scope, op, inputs, f"{node.outputs[0].name}_float", attrs, before=node)
    edit.replace(graph, scope, node, "Relu", [x])


# ---------------------------------------------------------------------------------------------------- operators


def _dequantize(graph: Graph, scope: Graph, node: gs.Node) -> None:
    x = node.inputs[0]
    q = constant_value(x)
    if q is None:
        edit.replace(graph, scope, node, "Identity", [x])
        return
    scale, zero = _value(node.inputs[1]), _given(node, 2)
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))

    def read() -> Values:
        return _floats(_value(x), scale, zero, axis, block)

    held = edit.constant(graph, f"{x.name}_float", Derived(q.shape, np.float32, read))
    edit.replace(graph, scope, node, "Identity", [held])


def _quantize(graph: Graph, scope: Graph, node: gs.Node) -> None:
    maker = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    positive = maker is not None and maker.op in ("Relu", "Clip", "Sigmoid", "Softmax", "HardSigmoid")
    cut = _bottom(_given(node, 1), _given(node, 2)) and not positive
    edit.replace(graph, scope, node, "Relu" if cut else "Identity", [node.inputs[0]])


def _conv(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs, bias = [node.inputs[0], _either(graph, node, 3, 0)], _given(node, 8)
    if bias is not None:
        values = bias * _value(node.inputs[1]) * _value(node.inputs[4])
        inputs.append(_constant(graph, f"{node.inputs[8].name}_float", values.astype(np.float32)))
    _put(graph, scope, node, "Conv", inputs, _plain(node), _bottom(_given(node, 6), _given(node, 7)))


def _matmul(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [_either(graph, node, 0, 0), _either(graph, node, 3, 1)]
    _put(graph, scope, node, "MatMul", inputs, {}, _bottom(_given(node, 6), _given(node, 7)))


def _gemm(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [node.inputs[0], _either(graph, node, 3, 0 if node.attrs.get("transB", 0) else 1)]
    bias = _given(node, 6)
    if bias is not None:
        scale = np.asarray(_value(node.inputs[1]), np.float32) * np.asarray(_value(node.inputs[4]), np.float32)
        values = (bias * scale).astype(np.float32) / np.float32(node.attrs.get("alpha", 1.0))
        inputs.append(
            _constant(graph, f"{node.inputs[6].name}_float", values * np.float32(node.attrs.get("alpha", 1.0)))
        )
    cut = len(node.inputs) > 8 and _bottom(_given(node, 7), _given(node, 8))
    _put(graph, scope, node, "Gemm", inputs, _plain(node), cut)


def _both(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [_either(graph, node, slot, 0) for slot in (0, 3)]
    op = node.op.removeprefix("QLinear")
    _put(graph, scope, node, op, inputs, {}, _bottom(_given(node, 6), _given(node, 7)))


def _one(graph: Graph, scope: Graph, node: gs.Node) -> None:
    op = node.op.removeprefix("QLinear")
    edit.replace(graph, scope, node, op, [node.inputs[0]], _plain(node))


def _concat(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [_either(graph, node, slot, 0) for slot in range(2, len(node.inputs), 3)]
    _put(graph, scope, node, "Concat", inputs, _plain(node), _bottom(_given(node, 0), _given(node, 1)))


def _at_run_time(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Let the input stand for its integers, in a scale of 1."""
    x, outputs = node.inputs[0], list(node.outputs)
    for tensor, value in zip(outputs[1:], (np.float32(1), np.uint8(0)), strict=False):
        edit.redirect(tensor, edit.constant(graph, f"{tensor.name}_one" if value else f"{tensor.name}_none", value))
    edit.remove(scope, node)
    edit.redirect(outputs[0], x)


def _integer(graph: Graph, scope: Graph, node: gs.Node) -> None:
    q, zero = _value(node.inputs[1]), _given(node, 3)
    weight = _floats(q, np.ones((), np.float32), zero, 0 if node.op == "ConvInteger" else q.ndim - 1)
    held = _constant(graph, f"{node.inputs[1].name}_float", weight)
    edit.replace(graph, scope, node, node.op.removesuffix("Integer"), [node.inputs[0], held], _plain(node))


def _plain(node: gs.Node) -> dict[str, object]:
    return {key: value for key, value in node.attrs.items() if key not in LAYOUT}


# ---------------------------------------------------------------------------------------------------- blocks


def _blocked(node: gs.Node) -> str:
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
    return _floats(q, scale, zeros.reshape(n, count), 1, block)


def _nbits(graph: Graph, scope: Graph, node: gs.Node) -> None:
    bits, block, columns = (int(node.attrs.get(key, 4)) for key in ("bits", "block_size", "K"))
    held, (scale, zeros) = node.inputs[1], (_given(node, slot) for slot in (2, 3))
    assert scale is not None
    shape = (columns, int(node.attrs["N"]))

    def read() -> Values:
        return np.ascontiguousarray(_rows(_value(held), scale, zeros, bits, block, columns).T)

    weight = edit.constant(graph, f"{held.name}_float", Derived(shape, np.float32, read))
    bias = node.inputs[5] if len(node.inputs) > 5 and node.inputs[5].name else None
    if bias is None:
        edit.replace(graph, scope, node, "MatMul", [node.inputs[0], weight])
        return
    name = f"{node.outputs[0].name}_product"
    x = edit.insert(graph, scope, "MatMul", [node.inputs[0], weight], name, before=node)
    edit.replace(graph, scope, node, "Add", [x, bias])


def _table(graph: Graph, scope: Graph, node: gs.Node) -> None:
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs.get("block_size", 128))
    held, scale, zeros = node.inputs[0], _value(node.inputs[2]), _given(node, 3)
    shape = (held.shape[0], held.shape[1] * 8 // bits)

    def read() -> Values:
        return _rows(_value(held), scale, zeros, bits, block, shape[1])

    table = edit.constant(graph, f"{held.name}_float", Derived(shape, np.float32, read))
    edit.replace(graph, scope, node, "Gather", [table, node.inputs[1]], {"axis": 0})


_WRITERS: dict[str, Callable[[Graph, Graph, gs.Node], None]] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "DynamicQuantizeLinear": _at_run_time,
    "MatMulInteger": _integer, "ConvInteger": _integer, "MatMulNBits": _nbits, "GatherBlockQuantized": _table,
    "QLinearConv": _conv, "QLinearMatMul": _matmul, "QGemm": _gemm, "QLinearAdd": _both, "QLinearMul": _both,
    "QLinearConcat": _concat, **dict.fromkeys(SAME, _one),
}  # fmt: skip
