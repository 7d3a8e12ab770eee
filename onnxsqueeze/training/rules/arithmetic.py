"""Rules of arithmetic that broadcasts: sums, products, powers, choices."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from onnxsqueeze.training.tape import Gradients, Rule, Tape, Unsupported

__all__ = ["RULES"]


def _back(tape: Tape, node: NodeProto, parts: list[str | None]) -> Gradients:
    """Sum each part, which has the shape of the output, over what its input was broadcast along."""
    out = tape.shape(node.output[0])
    return [
        None if part is None else tape.reduced(part, out, tape.shape(name))
        for part, name in zip(parts, node.input, strict=True)
    ]


def _add(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    return _back(tape, node, [grads[0] if tape.wants(node, i) else None for i in range(len(node.input))])


def _sub(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    other = tape.op("Neg", str(grads[0])) if tape.wants(node, 1) else None
    return _back(tape, node, [grads[0] if tape.wants(node, 0) else None, other])


def _mul(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    dy, (a, b) = str(grads[0]), node.input
    return _back(
        tape, node, [tape.mul(dy, b) if tape.wants(node, 0) else None, tape.mul(dy, a) if tape.wants(node, 1) else None]
    )


def _div(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``y = a/b``: ``da = dy/b``, ``db = −dy·y/b``."""
    part = tape.div(str(grads[0]), node.input[1])
    other = tape.op("Neg", tape.mul(part, node.output[0])) if tape.wants(node, 1) else None
    return _back(tape, node, [part if tape.wants(node, 0) else None, other])


def _pow(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``y = xᵖ`` with a constant p: ``dx = dy·p·xᵖ⁻¹``."""
    if tape.wants(node, 1):
        raise Unsupported("the exponent of Pow is computed")
    power = np.asarray(tape.value(node, 1), tape.dtype)
    x = node.input[0]
    slope = (
        tape.times(x, 2) if power.size == 1 and power.item() == 2
        else tape.mul(tape.op("Pow", x, tape.constant(power - 1)), tape.constant(power))
    )  # fmt: skip
    return _back(tape, node, [tape.mul(str(grads[0]), slope), None])


def _extreme(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """Max and Min: to the first of the inputs that is the output."""
    parts: list[str | None] = []
    left = str(grads[0])
    for i, name in enumerate(node.input):
        if i == len(node.input) - 1:
            parts.append(left if tape.wants(node, i) else None)
            break
        mask = tape.floats(tape.op("Equal", name, node.output[0]))
        part = tape.mul(left, mask)
        left = tape.sub(left, part)
        parts.append(part if tape.wants(node, i) else None)
    return _back(tape, node, parts)


def _where(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    dy, condition, zero = str(grads[0]), node.input[0], tape.number(0)
    one = tape.op("Where", condition, dy, zero) if tape.wants(node, 1) else None
    other = tape.op("Where", condition, zero, dy) if tape.wants(node, 2) else None
    return _back(tape, node, [None, one, other])


def _prelu(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``y = max(x, 0) + s·min(x, 0)``."""
    dy, (x, slope) = str(grads[0]), node.input
    positive = tape.op("Greater", x, tape.number(0))
    dx = tape.op("Where", positive, dy, tape.mul(dy, slope)) if tape.wants(node, 0) else None
    ds = tape.mul(dy, tape.op("Min", x, tape.number(0))) if tape.wants(node, 1) else None
    return _back(tape, node, [dx, ds])


RULES: dict[str, Rule] = {
    "Add": _add,
    "Sum": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Max": _extreme,
    "Min": _extreme,
    "Where": _where,
    "PRelu": _prelu,
}
