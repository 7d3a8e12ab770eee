"""Operators by what they do to the axes of their inputs."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.walk import is_standard

__all__ = ["ELEMENTWISE", "GLOBAL_POOLS", "POOLS", "QUANTIZED", "REDUCTIONS", "SAME_SHAPE", "operator"]

QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QGemm", "QMoE", "DynamicQuantizeMatMul"),
    *("MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QAttention"),
)
"""Operators that quantize, or compute on what is quantized, besides QLinear…, of any domain."""

_ARITHMETIC = "Abs Add Ceil Div Exp Floor Log Max Mean Min Mod Mul Neg Pow Reciprocal Round Sign Sqrt Sub Sum"
_TRIGONOMETRY = "Acos Acosh Asin Asinh Atan Atanh Cos Cosh Sin Sinh Tan Tanh"
_LOGIC = "And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor IsInf IsNaN Not Or Where Xor"
_COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual"
_ACTIVATIONS = """Celu Clip Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Shrink Sigmoid Softplus
    Softsign Swish ThresholdedRelu com.microsoft.BiasGelu com.microsoft.FastGelu com.microsoft.Gelu
    com.microsoft.QuickGelu"""
_NORMALIZATIONS = """BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization LRN
    MeanVarianceNormalization RMSNormalization"""

_REDUCED = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

ELEMENTWISE = frozenset(
    f"{_ARITHMETIC} {_TRIGONOMETRY} {_LOGIC} {_COMPARISONS} {_ACTIVATIONS} Cast Dropout Identity".split()
)
"""Every element of the output depends on the elements of the inputs in the same place, after broadcasting."""

GLOBAL_POOLS = frozenset(["GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"])
POOLS = GLOBAL_POOLS | {"AveragePool", "LpPool", "MaxPool"}
REDUCTIONS = frozenset(f"Reduce{kind}" for kind in _REDUCED.split()) | {
    "ArgMax",
    "ArgMin",
}
SAME_SHAPE = frozenset(f"{_NORMALIZATIONS} CumSum Hardmax LogSoftmax Softmax".split())
"""The first output has the shape of the first input, but is not computed element by element."""


def operator(node: gs.Node) -> str:
    """Return the operator's name, with its domain in front unless that is the standard one."""
    return str(node.op) if is_standard(node) else f"{node.domain}.{node.op}"
