"""Rules of what makes integers, multiplies and restores them: gradients go straight through (Bengio et al. 2013)."""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from onnxsqueeze.training.rules.layers import product_of
from onnxsqueeze.training.tape import Gradients, Rule, Tape, Unsupported, attributes

__all__ = ["RULES"]


def _along(tape: Tape, node: NodeProto, tensor: str) -> str:
    """Emit a scale or zero point in a shape that broadcasts with the data."""
    if attributes(node).get("block_size"):
        raise Unsupported(f"{node.op_type} has a scale per block")
    shape, own = tape.shape(node.input[0]), tape.shape(tensor)
    if not own or own == (1,):
        return tensor if not own else tape.reshape(tensor, ())
    axis = int(attributes(node).get("axis", 1)) % len(shape)
    return tape.reshape(tensor, [shape[i] if i == axis else 1 for i in range(len(shape))])


def _quantize(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``q = clip(round(x/s) + z)``: ``dx = dq/s`` where nothing was clipped. Scales stay as they are."""
    if tape.wants(node, 1):
        raise Unsupported("the scale of QuantizeLinear is computed")
    x, scale = node.input[0], _along(tape, node, node.input[1])
    again = tape.op("DequantizeLinear", node.output[0], *node.input[1:], **_axis(node))
    near = tape.op("LessOrEqual", tape.op("Abs", tape.sub(x, again)), tape.op("Abs", tape.times(scale, 0.5001)))
    dx = tape.mul(tape.div(str(grads[0]), scale), tape.floats(near))
    return [dx, *[None] * (len(node.input) - 1)]


def _axis(node: NodeProto) -> dict[str, int]:
    return {name: value for name, value in attributes(node).items() if name == "axis"}


def _dequantize(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``y = s·(q − z)``: ``dq = dy·s``, and ``ds = Σ dy·y/s``."""
    dy = str(grads[0])
    scale = _along(tape, node, node.input[1])
    found: list[str | None] = [None] * len(node.input)
    if tape.wants(node, 0):
        found[0] = tape.mul(dy, scale)
    if tape.wants(node, 1):
        whole = tape.div(tape.mul(dy, node.output[0]), scale)
        shape, own = tape.shape(node.output[0]), tape.shape(node.input[1])
        axis = int(attributes(node).get("axis", 1)) % max(len(shape), 1)
        axes = [i for i in range(len(shape)) if i != axis or not own or own == (1,)]
        found[1] = tape.reshape(tape.sum(whole, axes, keepdims=False), own)
    return found


def _dynamic(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``q = round(x/s) + z``, s and z from the range of x, so that nothing is clipped: ``dx = dq/s``.

    ``s·(q − z)`` is x but for rounding whatever s is, so what comes back to s and z belongs to the rounding.
    """
    return [None if grads[0] is None else tape.div(grads[0], node.output[1])]


def _matmul_integer(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``Y = (A − a)·(B − b)``, as MatMul."""
    if len(node.input) > 2 and node.input[2] and prod(tape.shape(node.input[2])) != 1:
        raise Unsupported("MatMulInteger has zero points per row")
    factors = []
    for slot in (0, 1):
        value = tape.floats(node.input[slot])
        zero = node.input[slot + 2] if slot + 2 < len(node.input) else ""
        factors.append(tape.sub(value, tape.floats(zero)) if zero else value)
    found = product_of(tape, node, (factors[0], factors[1]), str(grads[0]))
    return [*found, *[None] * (len(node.input) - 2)]


RULES: dict[str, Rule] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integer,
}
