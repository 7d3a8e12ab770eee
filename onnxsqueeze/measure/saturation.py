"""Whether the integers of a model are added up right on every x86-64 processor: a proof from the model alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.constants import constant_value
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.targets.pairs import LIMIT, excess, rows_of

__all__ = ["Saturation", "saturating", "warning"]

_WEIGHTS = {
    "MatMulInteger": (1,), "QLinearConv": (3,), "QLinearMatMul": (3,), "QGemm": (3,), "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (1,), "QAttention": (1,), "DynamicQuantizeLSTM": (1, 2),
}  # fmt: skip
"""Where operators that compute in integers have their weight. ConvInteger is not among them: its kernel is exact."""
_EXACT_IF_SIGNED = ("QLinearConv", "QLinearMatMul")
"""Operators whose kernels are other, exact ones if their first input is int8 as well; Q/DQ forms lose their sign."""


@dataclass(frozen=True)
class Saturation:
    """A layer whose sums can be wrong without VNNI: how many pairs of weights are too large, and the largest sum."""

    key: str
    op: str
    pairs: int
    largest: int


def saturating(graph: Graph) -> tuple[Saturation, ...]:
    """Return the layers of a graph in integer arithmetic that can saturate on an x86-64 processor without VNNI.

    Looked at are constant int8 weights of integer operators, standard ones and ONNX Runtime's own, and of Conv, Gemm
    and MatMul between DequantizeLinear and QuantizeLinear, which ONNX Runtime makes integer ones. Activations may take
    any value; so a layer that is not named is right on every input. Depthwise convolutions are added up exactly, and
    so are uint8 weights.
    """
    view = View(graph)
    found = []
    for node in view.nodes:
        pairs = largest = 0
        for rows in _rows(view, node):
            over = excess(rows)
            pairs += int((over > 0).sum())
            largest = max(largest, int(over.max(initial=-LIMIT)) + LIMIT)
        if pairs:
            found.append(Saturation(key_of(node), node.op, pairs, largest))
    return tuple(found)


def warning(found: Sequence[Saturation]) -> str:
    """Return what is wrong with these layers, and the way out, in one sentence; "" if there are none."""
    if not found:
        return ""
    worst = max(found, key=lambda each: (each.largest, each.pairs))
    layers = f"{len(found)} layers" if len(found) > 1 else "1 layer"
    return (
        f"wrong on x86-64 processors without VNNI: sums of {layers} can saturate, worst '{worst.key}', where two "
        f"neighbouring weights add up to {worst.largest} and {LIMIT} is the limit; squeeze the float model with int8, "
        "whose sums cannot"
    )


def _rows(view: View, node: gs.Node) -> Iterator[NDArray[np.generic]]:
    """Yield the int8 weights of a node as (outputs, inputs) in the order in which they are added up, if it matters."""
    slots: tuple[int, ...] = _WEIGHTS.get(node.op, ())
    if node.op in _EXACT_IF_SIGNED and view.dtype(node.inputs[0]) == np.int8:
        return
    weights = [constant_value(node.inputs[slot]) for slot in slots if slot < len(node.inputs)]
    if node.op in ("Conv", "Gemm", "MatMul") and _is_integer(view, node):
        weights = [constant_value(node.inputs[1].inputs[0].inputs[0])]
    kind = "Conv" if node.op in ("Conv", "QLinearConv") else "MatMul"
    for weight in weights:
        if weight is None or weight.dtype != np.int8 or weight.ndim < 2:
            continue
        if kind == "Conv" and weight.shape[1] == 1 and int(node.attrs.get("group", 1)) == len(weight) > 1:
            continue
        if kind == "Conv" or weight.ndim == 2:
            yield rows_of(weight, kind, bool(node.attrs.get("transB", 0)))
        else:
            yield np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])


def _is_integer(view: View, node: gs.Node) -> bool:
    """Whether ONNX Runtime computes a Conv, Gemm or MatMul in integers: both inputs are dequantized, the output of a
    Conv quantized again, behind a Relu or Clip if there is one."""
    makers = [tensor.inputs[0] for tensor in node.inputs[:2] if tensor.inputs]
    if len(makers) < 2 or any(maker.op != "DequantizeLinear" for maker in makers):
        return False
    if constant_value(makers[0].inputs[0]) is not None or makers[1].attrs.get("block_size", 0):
        return False
    if node.op != "Conv":
        return True
    readers = [reader for tensor in node.outputs for reader in tensor.outputs]
    readers += [next_ for reader in readers if reader.op in ("Relu", "Clip") for next_ in reader.outputs[0].outputs]
    return any(reader.op == "QuantizeLinear" for reader in readers)
