"""``int8``: 8-bit weights everywhere, 8-bit arithmetic where ONNX Runtime fuses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import edit, qdq
from onnxsqueeze.affine import Affine, activation, fixed
from onnxsqueeze.calibration import Moments, Statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Mean, Need, Pass, Range, Site, Skip
from onnxsqueeze.view import View, is_standard, key_of

__all__ = ["Int8"]

FloatArray = NDArray[np.floating]

KEEP_SCALE = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "DepthToSpace")
OWN_SCALE = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
DATA_INPUTS = {"Add": 2, "Mul": 2}
STORED_AXES = {"Conv": (0,), "ConvTranspose": (1,), "Gather": (0,), "LSTM": (0, 1), "GRU": (0, 1), "RNN": (0, 1)}
SMALL = 1024
"""Weights with fewer elements are left in float: nothing would be saved."""


@dataclass(frozen=True)
class _Layer:
    """How one node is quantized; ``apply`` reads nothing else."""

    form: str
    input: Affine | None = None
    output: Affine | None = None
    mean: NDArray[np.float64] | None = None
    inputs: tuple[Affine | None, ...] = ()


@dataclass(frozen=True)
class Int8(Pass):
    """Quantize ``y = W·x + b`` to ``y ≈ s_x·s_w·(W_q·(x_q − z_x) + b_q)`` with 8-bit integers.

    * *static*: Conv, Gemm and MatMul with a constant weight whose input range was measured become Q/DQ graphs that
      ONNX Runtime runs in integers: uint8 activations with the least mean squared error on their histogram, int8
      weights per output channel, int32 biases in the product scale. The mean error of the weights is taken off the
      bias: ``b̂ = b + (W − Ŵ)·μ``. Elementwise, pooling and shape operators between such layers stay in integers.
    * *dynamic*: MatMul and Gemm on token sequences, or without measured ranges, quantize their input at run time
      (DynamicQuantizeLinear, MatMulInteger).
    * *stored*: other weights are kept as int8 per channel and restored when the model is loaded: the file is
      smaller, the arithmetic stays in float.
    """

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "8-bit weights, and 8-bit arithmetic where it was calibrated and the runtime fuses it"
    min_opset: ClassVar[int] = 13

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the range of every float tensor of the main graph and the channel means of the layers' inputs."""
        layers = _layout(view, lambda tensor: fixed(0.0, 1.0), lambda node: None)
        for node in view.nodes:
            layer = layers.get(id(node))
            if layer is None or layer.form not in ("static", "integer"):
                continue
            yield from (Range(t.name) for t in node.inputs[: 1 if layer.form == "static" else None] if t.name)
            yield from (Range(t.name) for t in (_tail(view, node) if layer.form == "static" else node).outputs)
            if layer.form == "static":
                yield _mean(node)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        """Decide the form of every layer, then which operators between them stay in integers."""
        affines: dict[str, Affine | None] = {}

        def measured(tensor: gs.Tensor) -> Affine | None:
            if tensor.name not in affines:
                histogram = stats.range(tensor.name)
                affines[tensor.name] = None if histogram is None else activation(histogram)[0]
            return affines[tensor.name]

        layers = _layout(view, measured, lambda node: stats.of(_mean(node)))
        for node in view.nodes:
            layer, key = layers.get(id(node)), key_of(node)
            if layer is not None:
                yield Site(key, layer.form, {"op": node.op}, work=layer)
            elif _has_weight(view, node):
                reason = _refusal(view, node)
                if reason:
                    yield Skip(key, reason)

    def apply(self, site: Site, graph: Graph) -> None:
        """Quantize one node."""
        node, scope = edit.find(graph, site.key)
        layer = site.work
        assert isinstance(layer, _Layer)
        view = View(graph)
        if layer.form == "static":
            _static(graph, view, node, layer)
        elif layer.form == "integer":
            _carry(graph, view, node, layer)
        elif layer.form == "dynamic":
            _dynamic(graph, scope, view, node)
        else:
            _stored(graph, scope, view, node)


# ------------------------------------------------------------------------------------------------ deciding


def _layout(
    view: View,
    measured: Callable[[gs.Tensor], Affine | None],
    moments: Callable[[gs.Node], Moments | None],
) -> dict[int, _Layer]:
    """Return the form of every node that is quantized, given the measured parameters of tensors and input means."""
    layers: dict[int, _Layer] = {}
    quantized: dict[int, Affine] = {}
    for node in view.nodes:
        if not is_standard(node):
            continue
        if _is_layer(view, node):
            source = None if view.in_body(node) or _on_tokens(view, node) else measured(node.inputs[0])
            source = quantized.get(id(node.inputs[0]), source)
            tail = _tail(view, node)
            target = measured(tail.outputs[0])
            if source is not None and target is not None and _small_bias(view, node):
                found_mean = moments(node)
                target = _within_clip(view, tail, target)
                layers[id(node)] = _Layer("static", source, target, None if found_mean is None else found_mean.mean)
                quantized[id(tail.outputs[0])] = target
            elif node.op != "Conv":
                layers[id(node)] = _Layer("dynamic")
            else:
                layers[id(node)] = _Layer("stored")
        elif _has_weight(view, node) and not _refusal(view, node) and node.op in STORED_AXES:
            layers[id(node)] = _Layer("stored")
        elif node.op in KEEP_SCALE and not view.in_body(node) and id(node.inputs[0]) in quantized:
            affine = quantized[id(node.inputs[0])]
            layers[id(node)] = _Layer("integer", inputs=(affine,), output=affine)
            for tensor in node.outputs:
                quantized[id(tensor)] = affine
        elif node.op in OWN_SCALE and not view.in_body(node):
            found = [quantized.get(id(t)) for t in node.inputs]
            own = fixed(0.0, 1.0) if node.op == "Sigmoid" else measured(node.outputs[0])
            if own is not None and found and all(a is not None for a in found):
                layers[id(node)] = _Layer("integer", inputs=tuple(found), output=own)
                quantized[id(node.outputs[0])] = own
    return _useful(view, layers)


def _useful(view: View, layers: dict[int, _Layer]) -> dict[int, _Layer]:
    """Drop integer operators whose result no integer operator reads, last first; Gemm and MatMul then answer in float."""
    kept = dict(layers)
    for node in reversed(view.nodes):
        layer = kept.get(id(node))
        if layer is None or layer.form not in ("integer", "static"):
            continue
        tail = _tail(view, node) if layer.form == "static" else node
        readers = [r for t in tail.outputs for r in t.outputs]
        read = any(id(r) in kept and kept[id(r)].form in ("integer", "static") for r in readers)
        if read:
            continue
        if layer.form == "integer":
            del kept[id(node)]
        elif node.op != "Conv" and tail.op not in ("Relu", "Clip"):
            kept[id(node)] = _Layer("static", layer.input, None, layer.mean)
    return kept


def _mean(node: gs.Node) -> Mean:
    """The channel means of a layer's input."""
    return Mean(node.inputs[0].name, 1 if node.op == "Conv" else -1)


def _is_layer(view: View, node: gs.Node) -> bool:
    """Conv, Gemm or MatMul with a constant float32 weight worth quantizing."""
    if node.op not in ("Conv", "Gemm", "MatMul") or not _has_weight(view, node) or _refusal(view, node):
        return False
    if view.value(node.inputs[0]) is not None:
        return False
    if node.op == "Gemm":
        plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
        return plain and not node.attrs.get("transA", 0)
    return node.op == "Conv" or len(node.inputs[1].shape) == 2


def _has_weight(view: View, node: gs.Node) -> bool:
    slot = _weight_slot(node)
    return slot is not None and slot < len(node.inputs) and view.value(node.inputs[slot]) is not None


def _weight_slot(node: gs.Node) -> int | None:
    if not is_standard(node) or node.op not in ("Conv", "Gemm", "MatMul", *STORED_AXES):
        return None
    return 0 if node.op == "Gather" else 1


def _refusal(view: View, node: gs.Node) -> str:
    """Return why the weight stays as it is, "" if it need not."""
    if node.op == "Gather" and node.attrs.get("axis", 0) != 0:
        return "its table is not gathered by rows"
    weight = node.inputs[_weight_slot(node) or 0]
    if isinstance(weight, gs.Constant):
        if np.dtype(weight.dtype) != np.float32:
            return f"its weight is {weight.dtype}"
        size = prod(int(d) for d in weight.shape)
    else:
        value = view.value(weight)
        if value is None or value.dtype != np.float32:
            return "its weight is not float32"
        size = value.size
    if size < SMALL and node.op not in ("Conv", "Gemm", "MatMul"):
        return f"its weight has only {size} elements"
    return ""


def _on_tokens(view: View, node: gs.Node) -> bool:
    """MatMul on (batch, sequence, features): its outliers come and go with the input, so ranges are taken at run time."""
    shape = view.shape(node.inputs[0])
    return node.op == "MatMul" and shape is not None and len(shape) >= 3


def _tail(view: View, node: gs.Node) -> gs.Node:
    """Return the last node of the layer: its bias Add (MatMul) and its Relu or Clip belong to it."""
    last = node
    if node.op == "MatMul":
        reader = view.only_consumer(node.outputs[0])
        if reader is not None and reader.op == "Add" and _bias_of(view, reader, node.outputs[0]) is not None:
            last = reader
    reader = view.only_consumer(last.outputs[0])
    if reader is not None and reader.op in ("Relu", "Clip") and is_standard(reader):
        low, high = _clip(view, reader)
        if low is not None and low <= 0 < high:
            return reader
    return last


def _clip(view: View, node: gs.Node) -> tuple[float | None, float]:
    if node.op == "Relu":
        return 0.0, float("inf")
    if "min" in node.attrs or "max" in node.attrs:  # before opset 11
        return float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))
    limits = []
    for slot, default in ((1, -np.inf), (2, np.inf)):
        tensor = node.inputs[slot] if slot < len(node.inputs) and node.inputs[slot].name else None
        value = default if tensor is None else view.scalar(tensor)
        if value is None:
            return None, 0.0
        limits.append(float(value))
    return limits[0], limits[1]


def _within_clip(view: View, tail: gs.Node, affine: Affine) -> Affine:
    """Keep the range inside the Clip, and its zero point at 0 after Relu: only then it is fused."""
    if tail.op not in ("Relu", "Clip"):
        return affine
    low, high = _clip(view, tail)
    if low == 0:
        affine = Affine(affine.high / 255, 0)
    if affine.high > high:
        affine = fixed(affine.low, high * (1 - 1e-6))
    return affine


def _bias_of(view: View, add: gs.Node, source: gs.Tensor) -> FloatArray | None:
    other = add.inputs[1] if add.inputs[0] is source else add.inputs[0]
    value = view.value(other)
    return value if value is not None and value.ndim == 1 and value.dtype == np.float32 else None


def _small_bias(view: View, node: gs.Node) -> bool:
    """The bias must be constant to be written in the product scale."""
    has = len(node.inputs) > 2 and bool(node.inputs[2].name)
    return not has or view.value(node.inputs[2]) is not None


# ------------------------------------------------------------------------------------------------ rewriting


def _static(graph: Graph, view: View, node: gs.Node, layer: _Layer) -> None:
    assert layer.input is not None
    values = np.asarray(view.value(node.inputs[1]))
    axis = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1
    tail, hint = _tail(view, node), node.inputs[1].name
    add = tail if tail.op == "Add" else next((r for r in node.outputs[0].outputs if r.op == "Add" and r is not tail), None)
    add = add if node.op == "MatMul" and add is not None and view.only_consumer(node.outputs[0]) is add else None
    if add is not None:
        old = _bias_of(view, add, node.outputs[0])
    else:
        old = view.value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    channels = values.shape[axis]
    start = np.zeros(channels) if old is None else np.broadcast_to(old.reshape(-1), (channels,)).astype(np.float64)
    # an int32 bias must not overflow in the product scale
    floor = np.abs(start) / (layer.input.scale * 2**30)
    scales = qdq.scales_of(values, (axis,), floor)
    constant = node.inputs[1] if isinstance(node.inputs[1], gs.Constant) else None
    q = qdq.integers(graph, hint, constant, values, scales)
    corrected = start
    if layer.mean is not None and values.size <= qdq.HELD:
        corrected = start + _mean_error(node, values, np.asarray(q.values, np.float64) * scales, layer.mean)
    node.inputs[0] = qdq.dequantized(graph, node.inputs[0], layer.input)
    qdq.weight(graph, graph, node, 1, q, scales, axis)
    product = np.float32(layer.input.scale) * scales.reshape(-1)
    if add is not None:
        slot = 1 if add.inputs[0] is node.outputs[0] else 0
        qdq.bias(graph, graph, add, slot, corrected, product, add.inputs[slot].name)
    elif node.op != "MatMul":
        qdq.bias(graph, graph, node, 2, corrected, product, node.inputs[2].name if old is not None else f"{hint}_bias")
    if layer.output is not None:
        qdq.requantize(graph, tail.outputs[0], layer.output)


def _mean_error(
    node: gs.Node, values: FloatArray, rounded: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (W − Ŵ)·μ per output channel, μ being the channel means of the input."""
    difference = values.astype(np.float64) - rounded
    if node.op != "Conv":
        matrix = difference if node.attrs.get("transB", 0) else difference.T
        return np.asarray(matrix @ mean) if matrix.shape[1] == len(mean) else np.zeros(len(matrix))
    per_input = difference.reshape(*difference.shape[:2], -1).sum(-1)  # (O, C/group)
    group = int(node.attrs.get("group", 1))
    if len(mean) != per_input.shape[1] * group:
        return np.zeros(len(per_input))
    by_group = mean.reshape(group, -1)
    return np.einsum("goc,gc->go", per_input.reshape(group, -1, per_input.shape[1]), by_group).reshape(-1)


def _carry(graph: Graph, view: View, node: gs.Node, layer: _Layer) -> None:
    for slot, affine in enumerate(layer.inputs):
        if affine is not None:
            node.inputs[slot] = qdq.dequantized(graph, node.inputs[slot], affine)
    assert layer.output is not None
    for tensor in node.outputs:
        if tensor.name and (tensor.outputs or view.is_output(tensor)):
            qdq.requantize(graph, tensor, layer.output)


def _dynamic(graph: Graph, scope: Graph, view: View, node: gs.Node) -> None:
    values = np.asarray(view.value(node.inputs[1]))
    constant = node.inputs[1] if isinstance(node.inputs[1], gs.Constant) else None
    transposed = bool(node.op == "Gemm" and node.attrs.get("transB", 0))
    hint, x, output = node.inputs[1].name, node.inputs[0], node.outputs[0]
    scales = qdq.scales_of(values, (0 if transposed else 1,))
    if transposed:
        q = edit.constant(graph, f"{hint}_int8", np.ascontiguousarray(np.asarray(
            qdq.integers(graph, hint, None, values, scales).values).T))  # fmt: skip
    else:
        q = qdq.integers(graph, hint, constant, values, scales)
    quantized, scale, zero = _run_time_quantized(graph, scope, x, node)
    product = edit.insert(graph, scope, "MatMulInteger", [quantized, q, zero], f"{output.name}_int32", before=node)
    cast = edit.insert(graph, scope, "Cast", [product], f"{output.name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node)
    weight_scale = edit.constant(graph, f"{hint}_scale", np.ascontiguousarray(scales.reshape(-1)))
    both = edit.insert(graph, scope, "Mul", [scale, weight_scale], f"{output.name}_scale", before=node)
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is None:
        edit.replace(graph, scope, node, "Mul", [cast, both])
    else:
        scaled = edit.insert(graph, scope, "Mul", [cast, both], f"{output.name}_scaled", before=node)
        edit.replace(graph, scope, node, "Add", [scaled, bias])


def _run_time_quantized(graph: Graph, scope: Graph, x: gs.Tensor, node: gs.Node) -> list[gs.Tensor]:
    """Return (quantized, scale, zero point) of the input; layers that share an input share its quantization."""
    inside = {id(n) for n in scope.nodes}
    for reader in x.outputs:
        if reader.op == "DynamicQuantizeLinear" and id(reader) in inside:
            return list(reader.outputs)
    outputs = [edit.variable(graph, f"{x.name}_{part}") for part in ("quantized", "scale", "zero_point")]
    edit.insert(graph, scope, "DynamicQuantizeLinear", [x], outputs, before=node)
    return outputs


def _stored(graph: Graph, scope: Graph, view: View, node: gs.Node) -> None:
    slots = (1, 2) if node.op in ("LSTM", "GRU", "RNN") else (_weight_slot(node) or 0,)
    for slot in slots:
        tensor = node.inputs[slot]
        value = view.value(tensor)
        if value is None or value.dtype != np.float32:
            continue
        axes = tuple(a for a in STORED_AXES[node.op] if a < value.ndim)
        scales = qdq.scales_of(value, axes)
        q = qdq.integers(graph, tensor.name, tensor if isinstance(tensor, gs.Constant) else None, value, scales)
        if node.op == "Gather":
            _gathered(graph, scope, node, q, scales)
        else:
            qdq.store(graph, scope, node, slot, q, scales)


def _gathered(graph: Graph, scope: Graph, node: gs.Node, q: gs.Constant, scales: FloatArray) -> None:
    """Gather int8 rows and their scales, and multiply: only the rows that are read are restored."""
    output, indices = node.outputs[0], node.inputs[1]
    rows = edit.insert(graph, scope, "Gather", [q, indices], f"{output.name}_int8", {"axis": 0}, before=node)
    scale = edit.constant(graph, f"{node.inputs[0].name}_scale", scales)
    row_scales = edit.insert(graph, scope, "Gather", [scale, indices], f"{output.name}_scale", {"axis": 0}, before=node)
    cast = edit.insert(graph, scope, "Cast", [rows], f"{output.name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node)
    edit.replace(graph, scope, node, "Mul", [cast, row_scales])
