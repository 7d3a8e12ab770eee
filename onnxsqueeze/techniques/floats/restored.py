"""Quantized models as float ones: Q/DQ pairs, QLinear operators, what is quantized at run time, blocks of few bits.

Weights become the floats that their integers stand for. What flows between operators is rounded no more; it is still
cut off at 0 where a zero point at the end of the range did that, as it does for a Relu that a quantizer has removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_value
from onnxsqueeze.graph.operators import QUANTIZED
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived
from onnxsqueeze.measure.evaluated import evaluated
from onnxsqueeze.techniques.floats.integers import (
    Values,
    floats,
    given,
    refusal,
    value_of,
    write_nbits,
    write_table,
)

__all__ = ["hindrance", "in_integers", "restore"]

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
        if node.op in ("MatMulNBits", "GatherBlockQuantized") and (reason := refusal(node)):
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


# ---------------------------------------------------------------------------------------------------- operands


def _constant(graph: Graph, hint: str, values: Values) -> gs.Constant:
    return edit.constant(graph, hint, values)


def _either(graph: Graph, node: gs.Node, slot: int, axis: int) -> gs.Tensor:
    """Return an operand of a QLinear operator: what flows, or the floats of a constant; scale and zero stand behind."""
    tensor = node.inputs[slot]
    q = constant_value(tensor)
    if q is None:
        return tensor
    values = floats(q, value_of(node.inputs[slot + 1]), given(node, slot + 2), axis)
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
    scale, zero = value_of(node.inputs[1]), given(node, 2)
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))

    def read() -> Values:
        return floats(value_of(x), scale, zero, axis, block)

    held = edit.constant(graph, f"{x.name}_float", Derived(q.shape, np.float32, read))
    edit.replace(graph, scope, node, "Identity", [held])


def _quantize(graph: Graph, scope: Graph, node: gs.Node) -> None:
    maker = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    positive = maker is not None and maker.op in ("Relu", "Clip", "Sigmoid", "Softmax", "HardSigmoid")
    cut = _bottom(given(node, 1), given(node, 2)) and not positive
    edit.replace(graph, scope, node, "Relu" if cut else "Identity", [node.inputs[0]])


def _conv(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs, bias = [node.inputs[0], _either(graph, node, 3, 0)], given(node, 8)
    if bias is not None:
        values = bias * value_of(node.inputs[1]) * value_of(node.inputs[4])
        inputs.append(_constant(graph, f"{node.inputs[8].name}_float", values.astype(np.float32)))
    _put(graph, scope, node, "Conv", inputs, _plain(node), _bottom(given(node, 6), given(node, 7)))


def _matmul(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [_either(graph, node, 0, 0), _either(graph, node, 3, 1)]
    _put(graph, scope, node, "MatMul", inputs, {}, _bottom(given(node, 6), given(node, 7)))


def _gemm(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [node.inputs[0], _either(graph, node, 3, 0 if node.attrs.get("transB", 0) else 1)]
    bias = given(node, 6)
    if bias is not None:
        scale = np.asarray(value_of(node.inputs[1]), np.float32) * np.asarray(value_of(node.inputs[4]), np.float32)
        values = (bias * scale).astype(np.float32) / np.float32(node.attrs.get("alpha", 1.0))
        inputs.append(
            _constant(graph, f"{node.inputs[6].name}_float", values * np.float32(node.attrs.get("alpha", 1.0)))
        )
    cut = len(node.inputs) > 8 and _bottom(given(node, 7), given(node, 8))
    _put(graph, scope, node, "Gemm", inputs, _plain(node), cut)


def _both(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [_either(graph, node, slot, 0) for slot in (0, 3)]
    op = node.op.removeprefix("QLinear")
    _put(graph, scope, node, op, inputs, {}, _bottom(given(node, 6), given(node, 7)))


def _one(graph: Graph, scope: Graph, node: gs.Node) -> None:
    op = node.op.removeprefix("QLinear")
    edit.replace(graph, scope, node, op, [node.inputs[0]], _plain(node))


def _concat(graph: Graph, scope: Graph, node: gs.Node) -> None:
    inputs = [_either(graph, node, slot, 0) for slot in range(2, len(node.inputs), 3)]
    _put(graph, scope, node, "Concat", inputs, _plain(node), _bottom(given(node, 0), given(node, 1)))


def _at_run_time(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Let the input stand for its integers, in a scale of 1."""
    x, outputs = node.inputs[0], list(node.outputs)
    for tensor, value in zip(outputs[1:], (np.float32(1), np.uint8(0)), strict=False):
        edit.redirect(tensor, edit.constant(graph, f"{tensor.name}_one" if value else f"{tensor.name}_none", value))
    edit.remove(scope, node)
    edit.redirect(outputs[0], x)


def _integer(graph: Graph, scope: Graph, node: gs.Node) -> None:
    q, zero = value_of(node.inputs[1]), given(node, 3)
    weight = floats(q, np.ones((), np.float32), zero, 0 if node.op == "ConvInteger" else q.ndim - 1)
    held = _constant(graph, f"{node.inputs[1].name}_float", weight)
    edit.replace(graph, scope, node, node.op.removesuffix("Integer"), [node.inputs[0], held], _plain(node))


def _plain(node: gs.Node) -> dict[str, object]:
    return {key: value for key, value in node.attrs.items() if key not in LAYOUT}


_WRITERS: dict[str, Callable[[Graph, Graph, gs.Node], None]] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "DynamicQuantizeLinear": _at_run_time,
    "MatMulInteger": _integer, "ConvInteger": _integer, "MatMulNBits": write_nbits, "GatherBlockQuantized": write_table,
    "QLinearConv": _conv, "QLinearMatMul": _matmul, "QGemm": _gemm, "QLinearAdd": _both, "QLinearMul": _both,
    "QLinearConcat": _concat, **dict.fromkeys(SAME, _one),
}  # fmt: skip
