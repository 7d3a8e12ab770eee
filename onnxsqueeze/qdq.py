"""Emitting quantized forms that ONNX Runtime's CPU provider fuses: Q/DQ pairs, run-time quantization, int8 storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.affine import TINY, Affine, weight_scales
from onnxsqueeze.errors import PassError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_value
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived
from onnxsqueeze.rounding import LARGEST, compensated, feedback
from onnxsqueeze.smooth import Smoothing
from onnxsqueeze.targets.pairs import limited_scales, rounded, rows_of, weight_of

__all__ = [
    "Kept", "bias", "carry", "dequantized", "dynamic", "gate", "multiplied", "product_scales", "reader", "requantize",
    "scales_of", "stored", "values_of", "weight",
]  # fmt: skip

FloatArray = NDArray[np.floating]

ROW = 8
"""Weights that must share a scale at least, so that scales do not outweigh what int8 saves."""
HELD = 1 << 23
"""Quantized weights larger than this, in bytes, are computed while the file is written instead of held."""


def dequantized(graph: Graph, tensor: gs.Tensor, affine: Affine) -> gs.Tensor:
    """Return the tensor after a Q/DQ pair; a pair that is there already is shared. Scales are of rank 0."""
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is not None and producer.op == "DequantizeLinear":
        return tensor
    if producer is not None and producer.op == "AveragePool":
        tensor = _apart(graph, tensor)
        producer = tensor.inputs[0]
    for reader in tensor.outputs:
        if reader.op == "QuantizeLinear":
            return reader.outputs[0].outputs[0].outputs[0]
    return _pair(graph, tensor, affine, f"{tensor.name}_dequantized", producer)


def _apart(graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    """Return what an AveragePool makes through a Sum of one.

    Between two Q/DQ pairs ONNX Runtime would take its integer kernel, which is slower than the one in float and both
    pairs together, and does not load with dilations.
    """
    for reader in tensor.outputs:
        if reader.op == "Sum" and len(reader.inputs) == 1:
            return reader.outputs[0]
    return edit.insert(graph, graph, "Sum", [tensor], f"{tensor.name}_in_float", after=tensor.inputs[0])


def _pair(
    graph: Graph, tensor: gs.Tensor, affine: Affine, output: str | gs.Tensor, producer: gs.Node | None
) -> gs.Tensor:
    scale = edit.constant(graph, f"{tensor.name}_scale", np.float32(affine.scale).reshape(()))
    zero = edit.constant(graph, f"{tensor.name}_zero_point", affine.zero)
    place = {"after": producer} if producer is not None else {"before": graph.nodes[0]}
    quantized = edit.insert(graph, graph, "QuantizeLinear", [tensor, scale, zero], f"{tensor.name}_quantized", **place)
    made = output if isinstance(output, str) else [output]
    maker = quantized.inputs[0]
    return edit.insert(graph, graph, "DequantizeLinear", [quantized, scale, zero], made, after=maker)


def requantize(graph: Graph, tensor: gs.Tensor, affine: Affine) -> None:
    """Put a Q/DQ pair behind the node that makes the tensor; all readers, and a model output, get the DQ's side."""
    producer = tensor.inputs[0]
    if any(tensor is t for t in graph.outputs):
        raw = edit.variable(graph, f"{tensor.name}_raw")
        slot = next(i for i, t in enumerate(producer.outputs) if t is tensor)
        producer.outputs[slot] = raw
        _pair(graph, raw, affine, tensor, producer)
        return
    readers = list(tensor.outputs)
    result = _pair(graph, tensor, affine, f"{tensor.name}_dequantized", producer)
    edit.redirect(tensor, result, only=readers)


class Kept:
    """Scales and integers of weights that were computed for one plan, for the next."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[int, ...], bytes], NDArray[Any]] = {}
        self._last: tuple[tuple[object, ...], NDArray[Any]] | None = None

    def last(self, make: Callable[[], NDArray[Any]], *key: object) -> NDArray[Any]:
        """Do the same as ``get``, but forget the array when another one is asked for: it is large."""
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = key, make()
        return self._last[1]

    def get(self, make: Callable[[], NDArray[Any]], values: FloatArray, what: str) -> NDArray[Any]:
        """Return what ``make`` has returned for the same values, or returns now: in bodies, names may be others'."""
        key = what, values.shape, blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


def scales_of(values: FloatArray, axes: Sequence[int], floor: FloatArray | float = 0.0) -> FloatArray:
    """Return the symmetric int8 scales of a weight, one per index of ``axes``, in a shape that broadcasts over it."""
    moved = np.moveaxis(values, axes, range(len(axes)))
    count = prod(moved.shape[: len(axes)])
    scales = np.maximum(weight_scales(moved.reshape(count, -1)), np.float32(floor))
    shape = [values.shape[a] if a in axes else 1 for a in range(values.ndim)]
    return np.asarray(scales.reshape(shape), np.float32)


def _nearest(values: FloatArray, scales: FloatArray) -> NDArray[np.int8]:
    q = values / scales.astype(values.dtype)
    return np.clip(np.rint(q, out=q), -127, 127, out=q).astype(np.int8)


def product_scales(values: FloatArray, op: str, transposed: bool = False, per_tensor: bool = False) -> FloatArray:
    """Return the scales of a weight that is multiplied in integers, one per output channel or the largest of them.

    They are in a shape that broadcasts over the weight, and such that few neighbours have to be cut (see
    ``onnxsqueeze.targets.pairs``).
    """
    rows = rows_of(values, op, transposed)
    scales = limited_scales(rows, weight_scales(rows))
    if per_tensor:
        return np.asarray(scales.max(), np.float32).reshape((1,) * values.ndim)
    axis = 0 if op == "Conv" or transposed else 1
    return scales.reshape([-1 if a == axis else 1 for a in range(values.ndim)])


def multiplied(
    graph: Graph,
    hint: str,
    values: FloatArray,
    scales: FloatArray,
    op: str,
    transposed: bool = False,
    read: Callable[[], FloatArray] | None = None,
) -> gs.Constant:
    """Return the int8 initializer of a weight that is multiplied in integers: no neighbours can saturate."""

    def made(weight: FloatArray) -> NDArray[np.int8]:
        rows = rows_of(weight, op, transposed)
        q = rounded(rows, np.broadcast_to(scales.reshape(-1), len(rows)))
        return np.asarray(weight_of(q, weight.shape, op, transposed), np.int8)

    return _initializer(graph, hint, values, made, read)


def _initializer(
    graph: Graph,
    hint: str,
    values: FloatArray,
    made: Callable[[FloatArray], NDArray[np.int8]],
    read: Callable[[], FloatArray] | None,
) -> gs.Constant:
    """Return the int8 initializer made of ``values``; a large one is made of ``read()`` when the file is written."""
    if values.size > HELD and read is not None:
        return edit.constant(graph, f"{hint}_int8", Derived(values.shape, np.int8, lambda: made(read())))
    return edit.constant(graph, f"{hint}_int8", np.ascontiguousarray(made(values)))


def _integers(
    graph: Graph, hint: str, values: FloatArray, scales: FloatArray, read: Callable[[], FloatArray] | None = None
) -> gs.Constant:
    """Return the int8 initializer of a weight that is only stored."""
    return _initializer(graph, hint, values, lambda weight: _nearest(weight, scales), read)


def reader(tensor: gs.Tensor) -> Callable[[], FloatArray] | None:
    """Return a function that reads an initializer again later; None for weights that nodes compute."""
    return (lambda: values_of(tensor)) if isinstance(tensor, gs.Constant) else None


def values_of(tensor: gs.Tensor) -> FloatArray:
    """Return the value of a constant tensor."""
    value = constant_value(tensor)
    if value is None:
        raise PassError(f"the weight '{tensor.name}' is not constant any more")
    return np.asarray(value, np.float32)


def weight(graph: Graph, node: gs.Node, slot: int, q: gs.Constant, scales: FloatArray, axis: int | None) -> None:
    """Feed an input of the node from an int8 initializer through a DequantizeLinear.

    There is a scale per channel along ``axis``, or a single one if that is None.
    """
    name = node.inputs[slot].name
    shape, attrs = ((), {}) if axis is None else ((-1,), {"axis": axis})
    scale = edit.constant(graph, f"{name}_scale", np.asarray(scales.reshape(shape), order="C"))
    zero = edit.constant(graph, f"{name}_zero_point", np.zeros_like(scale.values, np.int8))
    node.inputs[slot] = edit.insert(
        graph, graph, "DequantizeLinear", [q, scale, zero], f"{name}_dequantized", attrs, before=node
    )


def bias(graph: Graph, node: gs.Node, slot: int, values: FloatArray, scale: FloatArray, hint: str) -> None:
    """Give the node an int32 bias of ``scale`` = input scale × weight scale, per channel or not, as kernels need it."""
    q = np.clip(np.round(values.astype(np.float64) / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    constant = edit.constant(graph, f"{hint}_int32", q)
    scales = edit.constant(graph, f"{hint}_scale", scale.astype(np.float32))
    zero = edit.constant(graph, f"{hint}_zero_point", np.zeros(scale.shape, np.int32))
    attrs = {"axis": 0} if scale.ndim else {}
    made = edit.insert(
        graph, graph, "DequantizeLinear", [constant, scales, zero], f"{hint}_dequantized", attrs, before=node
    )
    if slot < len(node.inputs):
        node.inputs[slot] = made
    else:
        node.inputs.append(made)


def carry(graph: Graph, node: gs.Node, inputs: Sequence[Affine | None], output: Affine | None) -> None:
    """Put Q/DQ pairs around an operator that ONNX Runtime then runs on integers."""
    for slot, affine in enumerate(inputs):
        if affine is not None:
            node.inputs[slot] = dequantized(graph, node.inputs[slot], affine)
    outputs = {id(t) for t in graph.outputs}
    for tensor in node.outputs:
        if output is not None and tensor.name and (tensor.outputs or id(tensor) in outputs):
            requantize(graph, tensor, output)


def gate(graph: Graph, node: gs.Node, source: Affine | None) -> None:
    """Replace HardSigmoid(x; α, β) by a Q/DQ pair with two scales: what Q saturates at is what HardSigmoid clips at.

    ``Q(x; 1/(255α), ⌊255β⌋)`` saturates at 0 where ``αx + β ≤ 0`` and at 255 where ``αx + β ≥ 1``; read with
    scale 1/255 and zero point 0 that is HardSigmoid, to half a step.
    """
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    x = node.inputs[0] if source is None else dequantized(graph, node.inputs[0], source)
    name = node.outputs[0].name
    steep = edit.constant(graph, f"{name}_steep", np.float32(1 / (255 * alpha)))
    middle = edit.constant(graph, f"{name}_middle", np.uint8(np.clip(np.floor(255 * beta), 0, 255)))
    unit = edit.constant(graph, f"{name}_scale", np.float32(1 / 255))
    zero = edit.constant(graph, f"{name}_zero_point", np.uint8(0))
    q = edit.insert(graph, graph, "QuantizeLinear", [x, steep, middle], f"{name}_quantized", before=node)
    edit.replace(graph, graph, node, "DequantizeLinear", [q, unit, zero])


def dynamic(
    graph: Graph,
    scope: Graph,
    node: gs.Node,
    smooth: Smoothing | None = None,
    second: FloatArray | None = None,
    source: str = "",
    kept: Kept | None = None,
) -> None:
    """Let a MatMul or Gemm quantize its input at run time: DynamicQuantizeLinear, MatMulInteger, Cast, Mul.

    ``smooth`` says what is done about outliers of the input first, ``second`` is ``E[xxᵀ]`` of the input as it comes,
    which the rounding of the weight looks at, and ``source`` the name of the input.
    """
    kept = kept or Kept()
    smooth = smooth or Smoothing()
    tensor = node.inputs[1]
    transposed = bool(node.op == "Gemm" and node.attrs.get("transB", 0))
    hint, x, output = tensor.name, node.inputs[0], node.outputs[0]

    def rows() -> FloatArray:
        return values_of(tensor).T if transposed else values_of(tensor)

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
    scales = kept.get(lambda: product_scales(values, "MatMul"), values, "columns")
    if second is not None and values.size <= HELD and len(values) <= LARGEST:
        inverse = 1.0 if factor is None else np.outer(_reciprocal(factor), _reciprocal(factor))

        def fitted() -> NDArray[np.int8]:
            back = kept.last(lambda: feedback(second * inverse), source, "smoothed")
            return compensated(values, scales, back, pairs=True)

        q = edit.constant(graph, f"{hint}_int8", kept.get(fitted, values, "rounded"))
    else:
        q = multiplied(graph, hint, values, scales, "MatMul", read=read if isinstance(tensor, gs.Constant) else None)
    weight_scale = edit.constant(graph, f"{hint}_scale", np.ascontiguousarray(scales.reshape(-1)))
    if smooth.rows:
        x, peaks = _over_peaks(graph, scope, x, smooth.low, node)
    parts = _run_time_quantized(graph, scope, x, node)
    result = _product(graph, scope, parts, q, weight_scale, output.name, node)
    if peaks is not None:
        result = edit.insert(graph, scope, "Mul", [result, peaks], f"{output.name}_times_peak", before=node)
    if beside is not None:
        result = edit.insert(graph, scope, "Add", [result, beside], f"{output.name}_sum", before=node)
    if len(node.inputs) > 2 and node.inputs[2].name:
        edit.replace(graph, scope, node, "Add", [result, node.inputs[2]])
        return
    maker = result.inputs[0]
    edit.remove(scope, node)
    maker.outputs[0] = output


def _product(
    graph: Graph, scope: Graph, parts: Sequence[gs.Tensor], q: gs.Constant, scale: gs.Constant, hint: str, node: gs.Node
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
    """Return the product of some channels of x with their rows of the weight; layers that share x share the Gather."""
    found = _reader(scope, x, "Gather", f"{x.name}_outliers")
    if found is None:
        index = edit.constant(graph, f"{x.name}_outlier_channels", channels)
        taken = edit.insert(graph, scope, "Gather", [x, index], f"{x.name}_outliers", {"axis": -1}, before=node)
    else:
        taken = found.outputs[0]
    weight = edit.constant(graph, f"{hint}_outliers", np.ascontiguousarray(rows, np.float32))
    return edit.insert(graph, scope, "MatMul", [taken, weight], f"{hint}_outlier_product", before=node)


def _reader(scope: Graph, x: gs.Tensor, op: str, output: str = "") -> gs.Node | None:
    inside = {id(n) for n in scope.nodes}
    for reader in x.outputs:
        if reader.op == op and id(reader) in inside and reader.outputs[0].name.startswith(output):
            return reader
    return None


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

    The table of a Gather stays int8 in memory too: only the rows that are read are restored. Returns the restored
    values of a weight that is small enough to be held.
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
    by_rows = len(values) * ROW <= values.size if values.ndim else False
    if node.op == "Gather" and node.attrs.get("axis", 0) == 0 and len(tensor.outputs) == 1 and by_rows:
        _gathered(graph, scope, node, tensor, values, kept)
        return None
    blocks = (-1, _block(values.shape))
    flat = values.reshape(blocks)
    if wide and values.size <= HELD:
        scales = np.maximum(np.abs(flat).max(axis=1, keepdims=True) / np.float32(32767), np.float32(TINY))
        q = edit.constant(graph, f"{tensor.name}_int16", np.rint(flat / scales).astype(np.int16))
    else:
        scales = kept.get(lambda: scales_of(flat, (0,)), flat, "blocks")
        if second is not None and node.op == "MatMul" and values.size <= HELD and len(values) <= LARGEST:
            every = np.repeat(scales.reshape(-1), blocks[1]).reshape(values.shape)

            def fitted() -> NDArray[np.int8]:
                return compensated(values, every, kept.last(lambda: feedback(second), source, "plain"))

            found = kept.get(fitted, values, "rounded blocks")
            q = edit.constant(graph, f"{tensor.name}_int8", np.ascontiguousarray(found.reshape(flat.shape)))
        else:
            q = _integers(graph, tensor.name, flat, scales, lambda: values_of(tensor).reshape(blocks))
    scale = edit.constant(graph, f"{tensor.name}_scale", scales)
    inside = {id(n) for n in scope.nodes}
    home = scope if all(id(n) in inside for n in tensor.outputs) else graph
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


def _gathered(graph: Graph, scope: Graph, node: gs.Node, tensor: gs.Constant, values: FloatArray, kept: Kept) -> None:
    """Gather int8 rows and their scales, and multiply: only the rows that are read are restored."""
    output, indices = node.outputs[0], node.inputs[1]
    scales = kept.get(lambda: scales_of(values, (0,)), values, "rows")
    q = _integers(graph, tensor.name, values, scales, reader(tensor))
    rows = edit.insert(graph, scope, "Gather", [q, indices], f"{output.name}_int8", {"axis": 0}, before=node)
    scale = edit.constant(graph, f"{tensor.name}_scale", scales)
    row_scales = edit.insert(graph, scope, "Gather", [scale, indices], f"{output.name}_scale", {"axis": 0}, before=node)
    cast = edit.insert(graph, scope, "Cast", [rows], f"{output.name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node)
    edit.replace(graph, scope, node, "Mul", [cast, row_scales])
