"""Emitting quantized forms that ONNX Runtime's CPU provider fuses: Q/DQ pairs, run-time quantization, int8 storage."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import edit
from onnxsqueeze.affine import Affine, weight_scales
from onnxsqueeze.codec import Graph
from onnxsqueeze.weights import Derived

__all__ = ["bias", "dequantized", "integers", "requantize", "scales_of", "store", "weight"]

FloatArray = NDArray[np.floating]

HELD = 1 << 23
"""Quantized weights larger than this, in bytes, are computed while the file is written instead of held."""


def dequantized(graph: Graph, tensor: gs.Tensor, affine: Affine) -> gs.Tensor:
    """Return the tensor after a Q/DQ pair; a pair that is there already is shared. Scales are of rank 0."""
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is not None and producer.op == "DequantizeLinear":
        return tensor
    for reader in tensor.outputs:
        if reader.op == "QuantizeLinear":
            return reader.outputs[0].outputs[0].outputs[0]
    return _pair(graph, tensor, affine, f"{tensor.name}_dequantized", producer)


def _pair(
    graph: Graph, tensor: gs.Tensor, affine: Affine, output: str | gs.Tensor, producer: gs.Node | None
) -> gs.Tensor:
    scale = edit.constant(graph, f"{tensor.name}_scale", np.float32(affine.scale).reshape(()))
    zero = edit.constant(graph, f"{tensor.name}_zero_point", np.uint8(affine.zero_point).reshape(()))
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
    readers = [node for node in tensor.outputs]
    result = _pair(graph, tensor, affine, f"{tensor.name}_dequantized", producer)
    edit.redirect(tensor, result, only=readers)


def scales_of(values: FloatArray, axes: Sequence[int], floor: FloatArray | float = 0.0) -> FloatArray:
    """Return the symmetric int8 scales of a weight, one per index of ``axes``, in a shape that broadcasts over it."""
    moved = np.moveaxis(values, axes, range(len(axes)))
    count = prod(moved.shape[: len(axes)])
    scales = np.maximum(weight_scales(moved.reshape(count, -1)), np.float32(floor))
    shape = [values.shape[a] if a in axes else 1 for a in range(values.ndim)]
    return scales.reshape(shape).astype(np.float32)


def _integers(values: FloatArray, scales: FloatArray) -> NDArray[np.int8]:
    q = values / scales.astype(values.dtype)
    return np.clip(np.rint(q, out=q), -127, 127, out=q).astype(np.int8)


def integers(graph: Graph, hint: str, constant: gs.Constant | None, values: FloatArray, scales: FloatArray) -> gs.Constant:
    """Return the int8 initializer; a large one is computed from its source only while the file is written."""
    if constant is not None and values.size > HELD:
        source = constant._values
        lazy = Derived(values.shape, np.int8, lambda: _integers(source.load() if hasattr(source, "load") else source, scales))
        return edit.constant(graph, f"{hint}_int8", lazy)
    return edit.constant(graph, f"{hint}_int8", _integers(values, scales))


def weight(graph: Graph, scope: Graph, node: gs.Node, slot: int, q: gs.Constant, scales: FloatArray, axis: int) -> None:
    """Feed an input of the node from an int8 initializer through a DequantizeLinear per channel along ``axis``."""
    name = node.inputs[slot].name
    scale = edit.constant(graph, f"{name}_scale", np.ascontiguousarray(scales.reshape(-1)))
    zero = edit.constant(graph, f"{name}_zero_point", np.zeros(scales.size, np.int8))
    node.inputs[slot] = edit.insert(
        graph, scope, "DequantizeLinear", [q, scale, zero], f"{name}_dequantized", {"axis": axis}, before=node
    )


def bias(graph: Graph, scope: Graph, node: gs.Node, slot: int, values: FloatArray, scale: FloatArray, hint: str) -> None:
    """Give the node an int32 bias with ``scale`` = input scale × weight scale per channel, as the fused kernels need."""
    q = np.clip(np.round(values.astype(np.float64) / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    constant = edit.constant(graph, f"{hint}_int32", q)
    scales = edit.constant(graph, f"{hint}_scale", scale.astype(np.float32))
    zero = edit.constant(graph, f"{hint}_zero_point", np.zeros(q.shape, np.int32))
    made = edit.insert(
        graph, scope, "DequantizeLinear", [constant, scales, zero], f"{hint}_dequantized", {"axis": 0}, before=node
    )
    if slot < len(node.inputs):
        node.inputs[slot] = made
    else:
        node.inputs.append(made)


def store(graph: Graph, scope: Graph, node: gs.Node, slot: int, q: gs.Constant, scales: FloatArray) -> None:
    """Feed an input from an int8 initializer through Cast and Mul, which ONNX Runtime folds when it loads the model."""
    name = node.inputs[slot].name
    cast = edit.insert(graph, scope, "Cast", [q], f"{name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node)
    scale = edit.constant(graph, f"{name}_scale", scales)
    node.inputs[slot] = edit.insert(graph, scope, "Mul", [cast, scale], f"{name}_float", before=node)
