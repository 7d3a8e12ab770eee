"""Rules of operators that move elements, repeat them or leave some out."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto

from onnxsqueeze.training.tape import Gradients, Rule, Tape, Unsupported, attributes

__all__ = ["RULES"]

EXACT = 1 << 24
"""Whole numbers up to here are exact in float32."""


def _reshaped(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    return [tape.reshape(str(grads[0]), tape.shape(node.input[0])), *[None] * (len(node.input) - 1)]


def _transposed(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    rank = len(tape.shape(node.input[0]))
    perm = list(attributes(node).get("perm") or range(rank - 1, -1, -1))
    return [tape.transpose(str(grads[0]), [perm.index(i) for i in range(rank)])]


def _split_up(tape: Tape, tensor: str, axis: int, sizes: Sequence[int]) -> list[str]:
    return tape.ops("Split", tensor, tape.ints(*sizes), axis=axis, outputs=len(sizes))


def _concat(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    axis = int(attributes(node)["axis"]) % len(tape.shape(node.output[0]))
    parts = _split_up(tape, str(grads[0]), axis, [tape.shape(name)[axis] for name in node.input])
    return [part if tape.wants(node, i) else None for i, part in enumerate(parts)]


def _zeros(tape: Tape, shape: Sequence[int]) -> str:
    return tape.expand(tape.number(0), shape)


def _split(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    axis = int(attributes(node).get("axis", 0)) % len(tape.shape(node.input[0]))
    parts = [
        _zeros(tape, tape.shape(name)) if grad is None else grad for name, grad in zip(node.output, grads, strict=True)
    ]
    return [tape.op("Concat", *parts, axis=axis), *[None] * (len(node.input) - 1)]


def _expanded(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    return [tape.reduced(str(grads[0]), tape.shape(node.output[0]), tape.shape(node.input[0])), None]


def _scattered(tape: Tape, node: NodeProto, grads: Gradients, data: int = 0, floats: bool = False) -> Gradients:
    """Add each gradient to the element that the output's element came from, whatever the operator.

    The operator itself, run on the numbers 0 … n − 1 in the place of its data, says where each element came from.
    ``floats``: it moves no integers, but floats.
    """
    shape = tape.shape(node.input[data])
    size = prod(shape)
    if floats and size > EXACT:
        raise Unsupported(f"{node.op_type} moves more than {EXACT} elements")
    numbers = np.arange(size, dtype=np.float32 if floats else np.int64).reshape(shape)
    inputs = [tape.constant(numbers) if i == data else name for i, name in enumerate(node.input)]
    moved = tape.op(node.op_type, *inputs, **attributes(node))
    if floats:
        moved = tape.op("Cast", moved, to=TensorProto.INT64)
    flat, at = tape.reshape(str(grads[0]), (-1,)), tape.reshape(moved, (-1,))
    found = tape.op("ScatterElements", _zeros(tape, (size,)), at, flat, axis=0, reduction="add")
    back: list[str | None] = [None] * len(node.input)
    back[data] = tape.reshape(found, shape)
    return back


def _rearranged(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    return _scattered(tape, node, grads, floats=True)


def _slice(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """A run of neighbours is padded with zeros; another choice is scattered."""
    shape = tape.shape(node.input[0])
    try:
        starts, ends, axes, steps = (tape.value(node, slot) for slot in (1, 2, 3, 4))
    except Unsupported:
        return _scattered(tape, node, grads)
    if starts is None or ends is None or (steps is not None and (steps != 1).any()):
        return _scattered(tape, node, grads)
    chosen = np.arange(len(starts)) if axes is None else axes % len(shape)
    begin, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end in zip(chosen, starts, ends, strict=True):
        first, last, _ = slice(int(start), int(end)).indices(shape[axis])
        begin[axis], after[axis] = first, shape[axis] - max(last, first)
    found = tape.op("Pad", str(grads[0]), tape.ints(*begin, *after), mode="constant")
    return [found, *[None] * (len(node.input) - 1)]


def _pad(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """What was padded with a constant is cut off again."""
    if attributes(node).get("mode", b"constant") != b"constant":
        return _scattered(tape, node, grads)
    shape = tape.shape(node.input[0])
    pads, axes = tape.value(node, 1), tape.value(node, 3)
    assert pads is not None
    chosen = np.arange(len(shape)) if axes is None else axes % len(shape)
    whole = np.zeros(2 * len(shape), np.int64)
    whole[chosen], whole[chosen + len(shape)] = pads[: len(chosen)], pads[len(chosen) :]
    begin, after = whole[: len(shape)], whole[len(shape) :]
    back = str(grads[0])
    if (whole > 0).any():
        out = tape.shape(node.output[0])
        ends = [size - max(int(a), 0) for size, a in zip(out, after, strict=True)]
        starts = [max(int(b), 0) for b in begin]
        back = tape.op("Slice", back, tape.ints(*starts), tape.ints(*ends), tape.ints(*range(len(shape))))
    if (whole < 0).any():
        back = tape.op("Pad", back, tape.ints(*np.maximum(-whole, 0)), mode="constant")
    return [back, *[None] * (len(node.input) - 1)]


def _gather(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """Rows are added to where they were taken from; along another axis elements are."""
    if int(attributes(node).get("axis", 0)) != 0:
        return _scattered(tape, node, grads)
    shape, indices = tape.shape(node.input[0]), tape.shape(node.input[1])
    where = tape.op("Cast", node.input[1], to=TensorProto.INT64)
    size = tape.constant(np.array(shape[0], np.int64))
    where = tape.op("Where", tape.op("Less", where, tape.constant(np.array(0, np.int64))), tape.add(where, size), where)
    where = tape.reshape(where, (prod(indices), 1))
    rows = tape.reshape(str(grads[0]), (prod(indices), *shape[1:]))
    return [tape.op("ScatterND", _zeros(tape, shape), where, rows, reduction="add"), None]


def _resize(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    if attributes(node).get("mode", b"nearest") != b"nearest":
        raise Unsupported("Resize interpolates")
    return _scattered(tape, node, grads, floats=True)


def _cumsum(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    attrs = attributes(node)
    flags = {"exclusive": int(attrs.get("exclusive", 0)), "reverse": 1 - int(attrs.get("reverse", 0))}
    return [tape.op("CumSum", str(grads[0]), node.input[1], **flags), None]


RULES: dict[str, Rule] = {
    "Reshape": _reshaped,
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Transpose": _transposed,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expanded,
    "Tile": _scattered,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _scattered,
    "GatherND": _scattered,
    "DepthToSpace": _rearranged,
    "SpaceToDepth": _rearranged,
    "Resize": _resize,
    "CumSum": _cumsum,
}
