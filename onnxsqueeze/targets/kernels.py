"""Run times of operators in float and in int8 on ONNX Runtime's CPU provider, in nanoseconds, from their sizes alone.

The figures are medians of one thread on an x86-64 with AVX-512 VNNI (ONNX Runtime 1.31, ``benchmarks/kernels.py``).
They only rank choices, and being constants they make the same choice on every machine. What was seen: a dense Conv
takes 0.3 of its float time in int8 from 64 input values per output on, as much at 16; gathering the inputs of a larger
kernel takes about 4 ns a tap, and twice that where the channels are no multiple of 4, so that the first Conv of a
picture is 3 times as slow in int8; a depthwise Conv takes 2–3 times its float time; an AveragePool takes 30 times as
long, its kernel in int8 being scalar; a Q or DQ costs as much as a float Conv with 10–20 input values per output.

This is for the int8 pass, which keeps the shapes and weighs the two arithmetics and the conversions between them. For
float layers of other shapes see ``onnxsqueeze.targets.work``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_graphsurgeon as gs

__all__ = ["CALL", "DEQUANTIZE", "QUANTIZE", "carry_times", "layer_times"]

CALL = 3000.0
"""What a further node costs whatever its size."""
QUANTIZE = 0.45
"""QuantizeLinear, per element."""
DEQUANTIZE = 0.3
"""DequantizeLinear, per element."""

_CARRY = {
    "Add": (0.4, 0.15),
    "Mul": (0.4, 0.2),
    "Concat": (0.3, 0.1),
    "AveragePool": (1.0, 25.0),
    "MaxPool": (1.0, 0.5),
    "GlobalAveragePool": (0.0, 0.0),
    "Sigmoid": (2.0, 0.4),
    "HardSigmoid": (0.6, 0.75),
    "LeakyRelu": (0.5, 0.4),
    "Transpose": (0.5, 0.3),
    "Slice": (0.3, 0.1),
    "Split": (0.3, 0.1),
    "Resize": (0.5, 0.2),
    "DepthToSpace": (0.5, 0.2),
}


def layer_times(node: gs.Node, weight: Sequence[int], outputs: float) -> tuple[float, float]:
    """Return the time of a Conv, Gemm or MatMul with this weight shape that makes ``outputs`` values: float, int8."""
    if node.op == "Conv":
        reads = prod(weight[1:])
        if int(node.attrs.get("group", 1)) > 1 and weight[1] <= 4:
            return outputs * (0.035 * reads), outputs * (0.55 + 0.03 * reads)
        taps = prod(weight[2:])
        gather = 4.0 * taps * (2 if weight[1] % 4 else 1) if taps > 1 else 0.0  # per position, for all output channels
        return outputs * (0.2 + 0.018 * reads), outputs * (0.2 + 0.0055 * reads + gather / weight[0])
    reads = weight[1] if node.attrs.get("transB", 0) else weight[0]
    return outputs * (0.2 + 0.02 * reads), outputs * (0.2 + 0.0065 * reads)


def carry_times(op: str, outputs: float) -> tuple[float, float]:
    """Return the time of an elementwise, pooling or shape operator that makes ``outputs`` values: float, int8."""
    one, other = _CARRY.get(op, (0.0, 0.0))
    return outputs * one, outputs * other
