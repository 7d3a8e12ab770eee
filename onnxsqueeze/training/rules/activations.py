"""Rules of functions of one variable, element by element: ``dx = dy·f′(x)``."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import NodeProto

from onnxsqueeze.training.tape import Gradients, Rule, Tape, attributes

__all__ = ["RULES"]

Slope = Callable[[Tape, NodeProto], str]
"""Emits f′(x), from the input or the output of the node."""


def _elementwise(slope: Slope) -> Rule:
    def rule(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
        return [tape.mul(str(grads[0]), slope(tape, node)), *[None] * (len(node.input) - 1)]

    return rule


def _same(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    return [grads[0], *[None] * (len(node.input) - 1)]


def _neg(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    return [tape.op("Neg", str(grads[0]))]


def _cast(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """Only between the float type itself: tensors of others have no gradients."""
    return [grads[0]]


def _relu(tape: Tape, node: NodeProto) -> str:
    # Sign and Where would say it in one, and take three and nine times as long
    return tape.floats(tape.op("Greater", node.output[0], tape.number(0)))


def _leaky(tape: Tape, node: NodeProto) -> str:
    alpha = float(attributes(node).get("alpha", 0.01))
    positive = tape.op("Greater", node.input[0], tape.number(0))
    return tape.op("Where", positive, tape.number(1), tape.number(alpha))


def _clip(tape: Tape, node: NodeProto) -> str:
    return tape.floats(tape.op("Equal", node.input[0], node.output[0]))


def _sigmoid(tape: Tape, node: NodeProto) -> str:
    y = node.output[0]
    return tape.mul(y, tape.sub(tape.number(1), y))


def _tanh(tape: Tape, node: NodeProto) -> str:
    y = node.output[0]
    return tape.sub(tape.number(1), tape.mul(y, y))


def _bell(tape: Tape, x: str, factor: float, width: float) -> str:
    """Emit ``factor·exp(−width·x²)``."""
    return tape.times(tape.op("Exp", tape.times(tape.mul(x, x), -width)), factor)


def _erf(tape: Tape, node: NodeProto) -> str:
    return _bell(tape, node.input[0], 2 / math.sqrt(math.pi), 1)


def _gelu(tape: Tape, node: NodeProto) -> str:
    """``Φ(x) + x·φ(x)``, or for the approximation by tanh ``½(1 + t) + ½·x·(1 − t²)·u′``."""
    x = node.input[0]
    if attributes(node).get("approximate", b"none") != b"tanh":
        below = tape.times(tape.add(tape.op("Erf", tape.times(x, math.sqrt(0.5))), tape.number(1)), 0.5)
        return tape.add(below, tape.mul(x, _bell(tape, x, 1 / math.sqrt(2 * math.pi), 0.5)))
    c, k = math.sqrt(2 / math.pi), 0.044715
    square = tape.mul(x, x)
    u = tape.times(tape.mul(x, tape.add(tape.times(square, k), tape.number(1))), c)
    t = tape.op("Tanh", u)
    inner = tape.times(tape.add(tape.times(square, 3 * k), tape.number(1)), c)
    bend = tape.mul(tape.mul(x, inner), tape.sub(tape.number(1), tape.mul(t, t)))
    return tape.times(tape.add(tape.add(t, tape.number(1)), bend), 0.5)


def _hard_sigmoid(tape: Tape, node: NodeProto) -> str:
    alpha = float(attributes(node).get("alpha", 0.2))
    y = node.output[0]
    inside = tape.op("And", tape.op("Greater", y, tape.number(0)), tape.op("Less", y, tape.number(1)))
    return tape.times(tape.floats(inside), alpha)


def _hard_swish(tape: Tape, node: NodeProto) -> str:
    """``x·h(x)`` with ``h = clip(x/6 + ½, 0, 1)``: ``h + x·h′``."""
    x = node.input[0]
    gate = tape.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    inside = tape.op("And", tape.op("Greater", gate, tape.number(0)), tape.op("Less", gate, tape.number(1)))
    return tape.add(gate, tape.times(tape.mul(x, tape.floats(inside)), 1 / 6))


def _elu(tape: Tape, node: NodeProto) -> str:
    alpha = float(attributes(node).get("alpha", 1.0))
    x, y = node.input[0], node.output[0]
    below = tape.add(y, tape.number(alpha))
    return tape.op("Where", tape.op("Greater", x, tape.number(0)), tape.number(1), below)


def _root(tape: Tape, node: NodeProto) -> str:
    return tape.div(tape.number(0.5), node.output[0])


def _reciprocal(tape: Tape, node: NodeProto) -> str:
    return tape.op("Neg", tape.mul(node.output[0], node.output[0]))


RULES: dict[str, Rule] = {
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Neg": _neg,
    "Relu": _elementwise(_relu),
    "LeakyRelu": _elementwise(_leaky),
    "Clip": _elementwise(_clip),
    "Sigmoid": _elementwise(_sigmoid),
    "Tanh": _elementwise(_tanh),
    "Erf": _elementwise(_erf),
    "Gelu": _elementwise(_gelu),
    "HardSigmoid": _elementwise(_hard_sigmoid),
    "HardSwish": _elementwise(_hard_swish),
    "Elu": _elementwise(_elu),
    "Softplus": _elementwise(lambda tape, node: tape.op("Sigmoid", node.input[0])),
    "Exp": _elementwise(lambda tape, node: node.output[0]),
    "Log": _elementwise(lambda tape, node: tape.op("Reciprocal", node.input[0])),
    "Sqrt": _elementwise(_root),
    "Reciprocal": _elementwise(_reciprocal),
    "Abs": _elementwise(lambda tape, node: tape.op("Sign", node.input[0])),
    "Sin": _elementwise(lambda tape, node: tape.op("Cos", node.input[0])),
    "Cos": _elementwise(lambda tape, node: tape.op("Neg", tape.op("Sin", node.input[0]))),
}
