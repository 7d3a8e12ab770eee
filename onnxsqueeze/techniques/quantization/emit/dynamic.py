"""Layers that quantize their input at run time, in the form that ONNX Runtime fuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor
from onnxsqueeze.linear.compensation import LARGEST, feedback
from onnxsqueeze.techniques.quantization.emit.few import few_bits
from onnxsqueeze.techniques.quantization.emit.weights import (
    HELD,
    FloatArray,
    Integers,
    Kept,
    known,
    laid,
    multiplied,
    product_scales,
    read_by,
    remember,
    values_of,
)
from onnxsqueeze.techniques.quantization.outliers import Smoothing
from onnxsqueeze.techniques.quantization.rounding import compensated

__all__ = ["dynamic"]

FEW = 512
"""Elements under which a Cast takes about as many bytes as float16 saves."""


def dynamic(
    graph: Graph,
    scope: Graph,
    node: gs.Node,
    smooth: Smoothing | None = None,
    second: FloatArray | None = None,
    source: str = "",
    kept: Kept | None = None,
    tied: bool = False,
    bits: int = 8,
    levels: int = 0,
) -> None:
    """Let a MatMul or Gemm quantize its input at run time: DynamicQuantizeLinear, MatMulInteger, Cast, Mul.

    ``smooth`` says what is done about outliers of the input first, ``second`` is ``E[xxᵀ]`` of the input as it comes,
    which the rounding of the weight looks at, and ``source`` the name of the input. All readers of a ``tied`` weight
    read the same integers, which are laid out as it was. Other weights are stored in ``bits``, as indices of so many
    ``levels`` if that is not 0.
    """
    kept = kept or Kept()
    smooth = smooth or Smoothing()
    tensor = node.inputs[1]
    shared = read_by(node) if tied else None
    whole = tensor if shared is None else shared.constant
    across = shared is not None and shared.axis == 0  # it is laid out as (N, K)
    transposed = across if shared else bool(node.op == "Gemm" and node.attrs.get("transB", 0))
    hint, x, output = whole.name, node.inputs[0], node.outputs[0]

    def rows() -> FloatArray:
        return values_of(whole).T if transposed else values_of(whole)

    def read() -> FloatArray:
        return rows() if factor is None else rows() * factor[:, None]

    factor, beside, peaks = smooth.scale, None, None
    if len(smooth.outliers):
        exact, channels = rows(), np.asarray(smooth.outliers)
        factor = np.ones(len(exact), np.float32) if factor is None else factor.copy()
        factor[channels] = 0
        beside = _float_part(graph, scope, x, exact[channels], channels, hint, node)
    values = read()
    if factor is not None:
        x = _divided(graph, scope, x, factor, node)
    inverse = 1.0 if factor is None else np.outer(_reciprocal(factor), _reciprocal(factor))
    pairs = graph.target.integers.pairs
    scales = kept.get(lambda: product_scales(values, "MatMul", pairs=pairs), values, "columns")

    def made() -> tuple[gs.Constant, gs.Constant]:
        if second is not None and values.size <= HELD and len(values) <= LARGEST:

            def fitted() -> NDArray[np.int8]:
                back = kept.last(lambda: feedback(second * inverse), source, "smoothed")
                return compensated(values, scales, back, pairs=pairs)

            found = kept.get(fitted, values, "rounded")
            q = edit.constant(graph, f"{hint}_int8", np.ascontiguousarray(found.T) if across else found)
        else:
            side = (lambda: read().T) if across else read
            lazy = side if isinstance(whole, gs.Constant) else None
            q = multiplied(
                graph, hint, values.T if across else values, scales, "MatMul", across, read=lazy, pairs=pairs
            )
        return q, edit.constant(graph, f"{hint}_scale", np.ascontiguousarray(scales.reshape(-1)))

    weight: gs.Tensor
    if shared is None and bits < 8:
        moments = None if second is None else second * inverse
        weight, _, few = few_bits(
            graph, scope, hint, values.T, bits, levels, moments, 0.0, lambda q: np.ascontiguousarray(q.T), node
        )
        weight_scale = edit.constant(graph, f"{hint}_scale", few.reshape(-1))
    elif shared is None:
        weight, weight_scale = made()
    else:
        found = [each for each in known(graph, shared.constant) if each.axis == shared.axis]
        same = [each for each in found if _alike(each.factor, factor)]
        mine = same[0] if same else remember(graph, Integers(shared.constant, *made(), shared.axis, factor))
        weight, weight_scale = laid(graph, scope, mine.q, across, node), mine.scale
    if smooth.rows:
        x, peaks = _over_peaks(graph, scope, x, smooth.low, node)
    parts = _run_time_quantized(graph, scope, x, node)
    result = _product(graph, scope, parts, weight, weight_scale, output.name, node)
    if peaks is not None:
        result = edit.insert(graph, scope, "Mul", [result, peaks], f"{output.name}_times_peak", before=node)
    if beside is not None:
        result = edit.insert(graph, scope, "Add", [result, beside], f"{output.name}_sum", before=node)
    bias = bias_tensor(node)
    if bias is not None:
        edit.replace(graph, scope, node, "Add", [result, bias])
        return
    maker = result.inputs[0]
    edit.remove(scope, node)
    maker.outputs[0] = output


def _alike(one: FloatArray | None, other: FloatArray | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def _product(
    graph: Graph, scope: Graph, parts: Sequence[gs.Tensor], q: gs.Tensor, scale: gs.Constant, hint: str, node: gs.Node
) -> gs.Tensor:
    quantized, x_scale, zero = parts
    product = edit.insert(graph, scope, "MatMulInteger", [quantized, q, zero], f"{hint}_int32", before=node)
    cast = edit.insert(graph, scope, "Cast", [product], f"{hint}_cast", {"to": onnx.TensorProto.FLOAT}, before=node)
    both = edit.insert(graph, scope, "Mul", [x_scale, scale], f"{hint}_scale", before=node)
    return edit.insert(graph, scope, "Mul", [cast, both], f"{hint}_scaled", before=node)


def _run_time_quantized(graph: Graph, scope: Graph, x: gs.Tensor, node: gs.Node) -> list[gs.Tensor]:
    """Return (quantized, scale, zero point) of the input; layers that share an input share its quantization."""
    found = _reader(scope, x, "DynamicQuantizeLinear")
    if found is not None:
        return list(found.outputs)
    outputs = [edit.variable(graph, f"{x.name}_{part}") for part in ("quantized", "scale", "zero_point")]
    edit.insert(graph, scope, "DynamicQuantizeLinear", [x], outputs, before=node)
    return outputs


def _divided(graph: Graph, scope: Graph, x: gs.Tensor, scale: FloatArray, node: gs.Node) -> gs.Tensor:
    """Return x / scale; layers that share an input share it, since they share the scale."""
    found = _reader(scope, x, "Mul", f"{x.name}_smoothed")
    if found is not None:
        return found.outputs[0]
    inverse = edit.constant(graph, f"{x.name}_smoothing", _reciprocal(scale))
    return edit.insert(graph, scope, "Mul", [x, inverse], f"{x.name}_smoothed", before=node)


def _reciprocal(scale: FloatArray) -> NDArray[np.float32]:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0).astype(np.float32)


def _over_peaks(graph: Graph, scope: Graph, x: gs.Tensor, low: float, node: gs.Node) -> tuple[gs.Tensor, gs.Tensor]:
    """Return x divided by the largest size in each row, and those sizes; layers that share x share both."""
    found = _reader(scope, x, "Div", f"{x.name}_over_peak")
    if found is not None:
        return found.outputs[0], found.inputs[1]

    def reduced(op: str) -> gs.Tensor:
        made = f"{x.name}_{op.lower()}"
        if graph.opset < 18:
            return edit.insert(graph, scope, op, [x], made, {"axes": [-1], "keepdims": 1}, before=node)
        axis = edit.constant(graph, f"{made}_axis", np.array([-1], np.int64))
        return edit.insert(graph, scope, op, [x, axis], made, {"keepdims": 1}, before=node)

    sizes = [reduced("ReduceMax"), edit.constant(graph, f"{x.name}_least", np.float32(max(-low, 1e-30)))]
    if low == 0:
        sizes.append(edit.insert(graph, scope, "Neg", [reduced("ReduceMin")], f"{x.name}_depth", before=node))
    peaks = edit.insert(graph, scope, "Max", sizes, f"{x.name}_peak", before=node)
    return edit.insert(graph, scope, "Div", [x, peaks], f"{x.name}_over_peak", before=node), peaks


def _float_part(
    graph: Graph, scope: Graph, x: gs.Tensor, rows: FloatArray, channels: NDArray[np.int64], hint: str, node: gs.Node
) -> gs.Tensor:
    """Return the product of some channels of x with their rows of the weight; layers that share x share the Gather.

    The rows are float16 in the file where that holds them and they are not few, at -72 dB.
    """
    found = _reader(scope, x, "Gather", f"{x.name}_outliers")
    if found is None:
        index = edit.constant(graph, f"{x.name}_outlier_channels", channels)
        taken = edit.insert(graph, scope, "Gather", [x, index], f"{x.name}_outliers", {"axis": -1}, before=node)
    else:
        taken = found.outputs[0]
    weight: gs.Tensor = edit.constant(graph, f"{hint}_outliers", np.ascontiguousarray(rows, np.float32))
    if rows.size >= FEW and float(np.abs(rows).max()) <= float(np.finfo(np.float16).max):
        half = edit.constant(graph, f"{hint}_outliers_float16", np.ascontiguousarray(rows, np.float16))
        to = {"to": onnx.TensorProto.FLOAT}
        weight = edit.insert(graph, scope, "Cast", [half], f"{hint}_outliers", to, before=node)
    return edit.insert(graph, scope, "MatMul", [taken, weight], f"{hint}_outlier_product", before=node)


def _reader(scope: Graph, x: gs.Tensor, op: str, output: str = "") -> gs.Node | None:
    inside = {id(n) for n in scope.nodes}
    for reader in x.outputs:
        if reader.op == op and id(reader) in inside and reader.outputs[0].name.startswith(output):
            return reader
    return None
