"""Rules of Softmax and of what normalises by mean and variance."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from onnx import NodeProto

from onnxsqueeze.training.tape import Gradients, Rule, Tape, Unsupported, attributes

__all__ = ["RULES"]


def _softmax(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``dx = y·(dy − Σ dy·y)``."""
    dy, y = str(grads[0]), node.output[0]
    axis = int(attributes(node).get("axis", -1)) % len(tape.shape(y))
    part = tape.mul(dy, y)
    return [tape.sub(part, tape.mul(y, tape.sum(part, [axis])))]


def _log_softmax(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``dx = dy − exp(y)·Σ dy``."""
    dy, y = str(grads[0]), node.output[0]
    axis = int(attributes(node).get("axis", -1)) % len(tape.shape(y))
    return [tape.sub(dy, tape.mul(tape.op("Exp", y), tape.sum(dy, [axis])))]


def _standardized(tape: Tape, x: str, axes: Sequence[int], epsilon: float, centred: bool = True) -> tuple[str, str]:
    """Emit ``x̂ = (x − μ)/√(σ² + ε)`` over axes, and the reciprocal of that root."""
    deviation = tape.sub(x, tape.mean(x, axes)) if centred else x
    variance = tape.mean(tape.mul(deviation, deviation), axes)
    inverse = tape.op("Reciprocal", tape.op("Sqrt", tape.add(variance, tape.number(epsilon))))
    return tape.mul(deviation, inverse), inverse


def _through(tape: Tape, grad: str, hat: str, inverse: str, axes: Sequence[int], centred: bool = True) -> str:
    """Emit ``dx = (g − mean(g) − x̂·mean(g·x̂))/√(σ² + ε)`` for the gradient g of x̂."""
    found = tape.sub(grad, tape.mul(hat, tape.mean(tape.mul(grad, hat), axes)))
    if centred:
        found = tape.sub(found, tape.mean(grad, axes))
    return tape.mul(found, inverse)


def _layer_norm(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """LayerNormalization, and RMSNormalization, which takes no mean off."""
    if any(grad is not None for grad in grads[1:]):
        raise Unsupported("the mean of LayerNormalization is read")
    attrs, dy, x, scale = attributes(node), str(grads[0]), node.input[0], node.input[1]
    shape, centred = tape.shape(x), node.op_type == "LayerNormalization"
    axes = list(range(int(attrs.get("axis", -1)) % len(shape), len(shape)))
    hat, inverse = _standardized(tape, x, axes, float(attrs.get("epsilon", 1e-5)), centred)
    found: list[str | None] = [None] * len(node.input)
    if tape.wants(node, 0):
        found[0] = _through(tape, tape.mul(dy, scale), hat, inverse, axes, centred)
    if tape.wants(node, 1):
        found[1] = tape.reduced(tape.mul(dy, hat), shape, tape.shape(scale))
    if tape.wants(node, 2):
        found[2] = tape.reduced(dy, shape, tape.shape(node.input[2]))
    return found


def _batch_norm(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``y = s·(x − μ)/√(σ² + ε) + b`` with a mean and a variance that stay as they are."""
    attrs, dy = attributes(node), str(grads[0])
    if attrs.get("training_mode") or tape.wants(node, 3) or tape.wants(node, 4):
        raise Unsupported("BatchNormalization takes its own statistics")
    x, scale, _, mean, variance = node.input
    shape = tape.shape(x)
    others = [0, *range(2, len(shape))]
    wide = (1, shape[1], *[1] * (len(shape) - 2))
    root = tape.op("Sqrt", tape.add(variance, tape.number(float(attrs.get("epsilon", 1e-5)))))
    found: list[str | None] = [None] * 5
    if tape.wants(node, 0):
        found[0] = tape.mul(dy, tape.reshape(tape.div(scale, root), wide))
    if tape.wants(node, 1):
        hat = tape.div(tape.sub(x, tape.reshape(mean, wide)), tape.reshape(root, wide))
        found[1] = tape.sum(tape.mul(dy, hat), others, keepdims=False)
    if tape.wants(node, 2):
        found[2] = tape.sum(dy, others, keepdims=False)
    return found


def _instance_norm(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """InstanceNormalization: a mean and a variance per sample and channel."""
    dy, (x, scale, _) = str(grads[0]), node.input
    shape = tape.shape(x)
    axes, wide = list(range(2, len(shape))), (1, shape[1], *[1] * (len(shape) - 2))
    hat, inverse = _standardized(tape, x, axes, float(attributes(node).get("epsilon", 1e-5)))
    found: list[str | None] = [None] * 3
    if tape.wants(node, 0):
        found[0] = _through(tape, tape.mul(dy, tape.reshape(scale, wide)), hat, inverse, axes)
    if tape.wants(node, 1):
        found[1] = tape.sum(tape.mul(dy, hat), [0, *axes], keepdims=False)
    if tape.wants(node, 2):
        found[2] = tape.sum(dy, [0, *axes], keepdims=False)
    return found


def _group_norm(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """GroupNormalization with a scale per channel, as since opset 21."""
    attrs, dy, (x, scale, _) = attributes(node), str(grads[0]), node.input
    shape = tape.shape(x)
    groups = int(attrs["num_groups"])
    if tape.shape(scale) != (shape[1],):
        raise Unsupported("GroupNormalization scales groups")
    cut = (shape[0], groups, prod(shape[1:]) // groups)
    wide, others = (1, shape[1], *[1] * (len(shape) - 2)), [0, *range(2, len(shape))]
    hat, inverse = _standardized(tape, tape.reshape(x, cut), [2], float(attrs.get("epsilon", 1e-5)))
    found: list[str | None] = [None] * 3
    if tape.wants(node, 0):
        grad = tape.reshape(tape.mul(dy, tape.reshape(scale, wide)), cut)
        found[0] = tape.reshape(_through(tape, grad, hat, inverse, [2]), shape)
    if tape.wants(node, 1):
        found[1] = tape.sum(tape.mul(dy, tape.reshape(hat, shape)), others, keepdims=False)
    if tape.wants(node, 2):
        found[2] = tape.sum(dy, others, keepdims=False)
    return found


RULES: dict[str, Rule] = {
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
}
