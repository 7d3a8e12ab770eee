"""Emitting quantized forms that ONNX Runtime's CPU provider fuses: Q/DQ pairs, run-time quantization, int8 storage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.techniques.quantization.emit.weights import FloatArray
from onnxsqueeze.techniques.quantization.grids import Affine

__all__ = ["bias", "carry", "dequantized", "gate", "requantize", "weight"]


def dequantized(graph: Graph, tensor: gs.Tensor, affine: Affine) -> gs.Tensor:
    """Return the tensor after a Q/DQ pair; a pair that is there already is shared. Scales are of rank 0."""
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is not None and producer.op == "DequantizeLinear":
        return tensor
    if producer is not None and _would_be_integer(producer):
        tensor = _apart(graph, tensor)
        producer = tensor.inputs[0]
    for reader in tensor.outputs:
        if reader.op == "QuantizeLinear":
            return reader.outputs[0].outputs[0].outputs[0]
    return _pair(graph, tensor, affine, f"{tensor.name}_dequantized", producer)


def _would_be_integer(node: gs.Node) -> bool:
    """Return whether ONNX Runtime would compute in integers what is left in float, in front of a QuantizeLinear: an
    AveragePool, and a layer behind a Q/DQ pair, each with a Relu or Clip behind it or without.
    """
    if node.op in ("Relu", "Clip") and node.inputs[0].inputs:
        node = node.inputs[0].inputs[0]
    if node.op == "AveragePool":
        return True
    if node.op not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 2:
        return False
    source, weight = (t.inputs[0].op if t.inputs else "" for t in node.inputs[:2])
    return bool(source == "DequantizeLinear" and weight != "DequantizeLinear")


def _apart(graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    """Return what an AveragePool, or a layer with float weights, makes through a Sum of one.

    Between two Q/DQ pairs ONNX Runtime would take its integer kernel for an AveragePool, which is slower than the one
    in float and both pairs together, and does not load with dilations; it would quantize the weights of the layer, in
    its own way, and compute in integers or restore them in every run.
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


def weight(
    graph: Graph,
    node: gs.Node,
    slot: int,
    q: gs.Tensor,
    scales: FloatArray,
    axis: int | None,
    scale: gs.Constant | None = None,
) -> None:
    """Feed an input of the node from int8 integers through a DequantizeLinear, which readers of the same ones share.

    There is a scale per channel along ``axis``, or a single one if that is None; ``scale`` holds them if something
    holds them already.
    """
    name = node.inputs[slot].name
    if scale is not None:
        for reader in q.outputs:
            if reader.op == "DequantizeLinear" and reader.inputs[1] is scale:
                node.inputs[slot] = reader.outputs[0]
                return
    shape, attrs = ((), {}) if axis is None else ((-1,), {"axis": axis})
    if scale is None:
        scale = edit.constant(graph, f"{name}_scale", np.asarray(scales.reshape(shape), order="C"))
    zero = edit.constant(graph, f"{name}_zero_point", np.zeros(scale.shape, np.int8))
    node.inputs[slot] = edit.insert(
        graph, graph, "DequantizeLinear", [q, scale, zero], f"{name}_dequantized", attrs, before=node
    )


def bias(graph: Graph, node: gs.Node, slot: int, values: FloatArray, scale: FloatArray, hint: str) -> None:
    """Give the node an int32 bias of ``scale`` = input scale × weight scale, per channel or not, as kernels need it."""
    q = np.clip(np.round(values.astype(np.float64) / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    constant = edit.constant(graph, f"{hint}_int32", q)
    scales = edit.constant(graph, f"{hint}_scale", scale.astype(np.float32))
    attrs = {"axis": 0} if scale.ndim else {}
    made = edit.insert(graph, graph, "DequantizeLinear", [constant, scales], f"{hint}_dequantized", attrs, before=node)
    if slot < len(node.inputs):
        node.inputs[slot] = made
    else:
        node.inputs.append(made)


def carry(graph: Graph, node: gs.Node, tail: gs.Node, inputs: Sequence[Affine | None], output: Affine | None) -> None:
    """Put Q/DQ pairs around an operator, and the ``tail`` that is one with it, that ONNX Runtime runs on integers."""
    for slot, affine in enumerate(inputs):
        if affine is not None:
            node.inputs[slot] = dequantized(graph, node.inputs[slot], affine)
    outputs = {id(t) for t in graph.outputs}
    for tensor in tail.outputs:
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
