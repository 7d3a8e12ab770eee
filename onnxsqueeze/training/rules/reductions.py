"""Rules of sums, means and extremes over axes, and of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from onnxsqueeze.training.rules.windows import windows
from onnxsqueeze.training.tape import Gradients, Rule, Tape, Unsupported, attributes

__all__ = ["RULES"]


def _axes(tape: Tape, node: NodeProto) -> list[int]:
    """Return the axes that a node reduces, from its input or, as in older opsets, its attribute."""
    rank = len(tape.shape(node.input[0]))
    attrs = attributes(node)
    given = tape.value(node, 1) if len(node.input) > 1 else attrs.get("axes")
    if given is None or not len(given):
        return [] if attrs.get("noop_with_empty_axes") else list(range(rank))
    return sorted(int(axis) % rank for axis in given)


def _kept(tape: Tape, node: NodeProto, tensor: str, axes: Sequence[int]) -> str:
    """Emit what has the shape of the output with the axes that are gone, of size 1."""
    shape = [1 if i in axes else size for i, size in enumerate(tape.shape(node.input[0]))]
    return tape.reshape(tensor, shape)


def _alone(node: NodeProto, grad: str) -> Gradients:
    return [grad, *[None] * (len(node.input) - 1)]


def _reduce_sum(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    axes = _axes(tape, node)
    return _alone(node, tape.expand(_kept(tape, node, str(grads[0]), axes), tape.shape(node.input[0])))


def _reduce_mean(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    axes, shape = _axes(tape, node), tape.shape(node.input[0])
    dy = tape.times(str(grads[0]), 1 / max(prod(shape[i] for i in axes), 1))
    return _alone(node, tape.expand(_kept(tape, node, dy, axes), shape))


def _reduce_extreme(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """To the elements that are the extreme, in equal parts."""
    axes = _axes(tape, node)
    same = tape.floats(tape.op("Equal", node.input[0], _kept(tape, node, node.output[0], axes)))
    share = tape.div(same, tape.sum(same, axes))
    return _alone(node, tape.mul(share, _kept(tape, node, str(grads[0]), axes)))


def _reduce_square(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """ReduceSumSquare, and ReduceL2, whose root is the output."""
    dy = str(grads[0])
    dy = tape.times(dy, 2) if node.op_type == "ReduceSumSquare" else tape.div(dy, node.output[0])
    return _alone(node, tape.mul(node.input[0], _kept(tape, node, dy, _axes(tape, node))))


def _global_average(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    shape = tape.shape(node.input[0])
    return [tape.expand(tape.times(str(grads[0]), 1 / prod(shape[2:])), shape)]


def _global_max(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    axes = list(range(2, len(tape.shape(node.input[0]))))
    same = tape.floats(tape.op("Equal", node.input[0], node.output[0]))
    return [tape.mul(tape.div(same, tape.sum(same, axes)), str(grads[0]))]


def _max_pool(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """To the places that the node says it took its maxima from."""
    if len(node.output) > 1 and node.output[1]:
        places = node.output[1]
    else:
        places = f"grad/places/{node.output[0]}"
        tape.saved.setdefault(node.output[0], []).append((1, places))
    if attributes(node).get("storage_order"):
        raise Unsupported("MaxPool counts columns first")
    shape = tape.shape(node.input[0])
    zeros = tape.expand(tape.number(0), (prod(shape),))
    flat, at = tape.reshape(str(grads[0]), (-1,)), tape.reshape(places, (-1,))
    return [tape.reshape(tape.op("ScatterElements", zeros, at, flat, axis=0, reduction="add"), shape)]


def _average_pool(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """Each window gives an equal part to each of the places that it counted."""
    attrs, shape, out = attributes(node), tape.shape(node.input[0]), tape.shape(node.output[0])
    at = windows(attrs, shape[2:], attrs["kernel_shape"], out[2:])
    rank = len(at.kernel)
    if any(size < 0 for size in at.left):
        raise Unsupported("AveragePool has windows that are not whole")
    if any((*at.begin, *at.end)) and not attrs.get("count_include_pad", 0):
        counts = np.ones(())
        for k, s, d, b, n, o in zip(at.kernel, at.strides, at.dilations, at.begin, shape[2:], out[2:], strict=True):
            places = (np.arange(o) * s - b)[:, None] + np.arange(k) * d
            counts = np.multiply.outer(counts, ((places >= 0) & (places < n)).sum(1))
        dy = tape.mul(str(grads[0]), tape.constant((1 / counts).astype(tape.dtype)))
    else:
        dy = tape.times(str(grads[0]), 1 / prod(at.kernel))
    apart = tape.reshape(dy, (shape[0] * shape[1], 1, *out[2:]))
    ones = tape.constant(np.ones((1, 1, *at.kernel), tape.dtype))
    back = tape.op(
        "ConvTranspose",
        apart,
        ones,
        kernel_shape=list(at.kernel),
        strides=list(at.strides),
        dilations=list(at.dilations),
    )
    ends = [b + n for b, n in zip(at.begin, shape[2:], strict=True)]
    reach = [n + b + e - left for n, b, e, left in zip(shape[2:], at.begin, at.end, at.left, strict=True)]
    more = [max(end - size, 0) for end, size in zip(ends, reach, strict=True)]
    if any(more):  # behind the last window nothing was counted
        back = tape.op("Pad", back, tape.ints(0, 0, *[0] * rank, 0, 0, *more), mode="constant")
    if any(at.begin) or any(size > end for end, size in zip(ends, reach, strict=True)):
        back = tape.op("Slice", back, tape.ints(*at.begin), tape.ints(*ends), tape.ints(*range(2, rank + 2)))
    return [tape.reshape(back, shape)]


RULES: dict[str, Rule] = {
    "ReduceSum": _reduce_sum,
    "ReduceMean": _reduce_mean,
    "ReduceMax": _reduce_extreme,
    "ReduceMin": _reduce_extreme,
    "ReduceSumSquare": _reduce_square,
    "ReduceL2": _reduce_square,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
}
