"""Rules of MatMul, Gemm, Conv and ConvTranspose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from onnx import NodeProto

from onnxsqueeze.training.rules.windows import Windows, windows
from onnxsqueeze.training.tape import Gradients, Rule, Tape, Unsupported, attributes

__all__ = ["RULES", "product_of"]


def _swapped(tape: Tape, name: str, rank: int) -> str:
    """Emit a matrix, or a stack of them, transposed."""
    return tape.transpose(name, [*range(rank - 2), rank - 1, rank - 2])


def _matmul(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    a, b = node.input
    return product_of(tape, node, (a, b), str(grads[0]))


def product_of(tape: Tape, node: NodeProto, factors: tuple[str, str], grad: str) -> list[str | None]:
    """Emit the gradients of a node's product ``Y = A·B`` of the factors, which have the shapes of its inputs.

    ``dA = dY·Bᵀ``, ``dB = Aᵀ·dY``, summed over what was broadcast; a vector is a matrix of one row.
    """
    a, b = factors
    one, two, out = tape.shape(node.input[0]), tape.shape(node.input[1]), tape.shape(node.output[0])
    row, column = len(one) == 1, len(two) == 1
    left, right = ((1, *one) if row else one), ((*two, 1) if column else two)
    batch = out[: len(out) - (not row) - (not column)]
    whole = (*batch, left[-2], right[-1])
    dy = grad if whole == out else tape.reshape(grad, whole)
    found: list[str | None] = [None, None]
    if tape.wants(node, 0):
        other = b if right == two else tape.reshape(b, right)
        da = tape.op("MatMul", dy, _swapped(tape, other, len(right)))
        da = tape.reduced(da, (*batch, left[-2], left[-1]), left)
        found[0] = tape.reshape(da, one) if row else da
    if tape.wants(node, 1):
        if len(right) == 2:  # one product of all rows, in place of many that are added up
            rows = prod(left[:-1])
            flat, dflat = tape.reshape(a, (rows, left[-1])), tape.reshape(dy, (rows, right[-1]))
            db = tape.op("Gemm", flat, dflat, transA=1)
        else:
            other = a if left == one else tape.reshape(a, left)
            db = tape.op("MatMul", _swapped(tape, other, len(left)), dy)
            db = tape.reduced(db, (*batch, right[-2], right[-1]), right)
        found[1] = tape.reshape(db, two) if column else db
    return found


def _gemm(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``Y = α·op(A)·op(B) + β·C``."""
    attrs, dy = attributes(node), str(grads[0])
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    ta, tb = int(attrs.get("transA", 0)), int(attrs.get("transB", 0))
    a, b = node.input[:2]
    found: list[str | None] = [None] * len(node.input)
    if tape.wants(node, 0):
        args, flags = ((b, dy), (tb, 1)) if ta else ((dy, b), (0, 1 - tb))
        found[0] = tape.op("Gemm", *args, alpha=alpha, transA=flags[0], transB=flags[1])
    if tape.wants(node, 1):
        args, flags = ((dy, a), (1, ta)) if tb else ((a, dy), (1 - ta, 0))
        found[1] = tape.op("Gemm", *args, alpha=alpha, transA=flags[0], transB=flags[1])
    if tape.wants(node, 2):
        found[2] = tape.times(tape.reduced(dy, tape.shape(node.output[0]), tape.shape(node.input[2])), beta)
    return found


def _conv(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """``dX = ConvTranspose(dY, W)``; dW tap by tap, a product of matrices each; ``db`` is the sum.

    Of the forms that ONNX Runtime can run these are the fastest on its CPU: ``dW`` as a convolution whose batch and
    channels are swapped takes two to three times as long.
    """
    dy, x, w = str(grads[0]), node.input[0], node.input[1]
    shape, kernel, out = tape.shape(x), tape.shape(w), tape.shape(node.output[0])
    at = windows(attributes(node), shape[2:], kernel[2:], out[2:])
    group = int(attributes(node).get("group", 1))
    found: list[str | None] = [None] * len(node.input)
    if tape.wants(node, 0):
        found[0] = tape.op(
            "ConvTranspose", dy, w, group=group, kernel_shape=list(at.kernel), strides=list(at.strides),
            dilations=list(at.dilations), pads=[*at.begin, *at.end], output_padding=list(at.left),
        )  # fmt: skip
    if tape.wants(node, 1):
        found[1] = _taps(tape, x, dy, shape, out, group, at, kernel)
    if tape.wants(node, 2):
        found[2] = tape.sum(dy, [0, *range(2, len(out))], keepdims=False)
    return found


def _conv_transpose(tape: Tape, node: NodeProto, grads: Gradients) -> Gradients:
    """The mirror of Conv: ``dX = Conv(dY, W)``, and x and dY change places in dW."""
    attrs, dy = attributes(node), str(grads[0])
    x, w = node.input[:2]
    shape, kernel, out = tape.shape(x), tape.shape(w), tape.shape(node.output[0])
    if attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"") or "output_shape" in attrs:
        raise Unsupported("ConvTranspose pads by itself")
    at = windows({k: v for k, v in attrs.items() if k != "output_padding"}, out[2:], kernel[2:], shape[2:])
    group = int(attrs.get("group", 1))
    found: list[str | None] = [None] * len(node.input)
    if tape.wants(node, 0):
        found[0] = tape.op(
            "Conv", dy, w, group=group, kernel_shape=list(at.kernel), strides=list(at.strides),
            dilations=list(at.dilations), pads=[*at.begin, *at.end],
        )  # fmt: skip
    if tape.wants(node, 1):
        found[1] = _taps(tape, dy, x, out, shape, group, at, kernel)
    if tape.wants(node, 2):
        found[2] = tape.sum(dy, [0, *range(2, len(out))], keepdims=False)
    return found


def _taps(
    tape: Tape,
    x: str,
    dy: str,
    shape: Sequence[int],
    out: Sequence[int],
    group: int,
    at: Windows,
    kernel: Sequence[int],
) -> str:
    """Emit dW (O, C/g, …): for each tap t, ``dW_t = Σ dY·x_tᵀ`` over samples and places, x_t being what the tap saw."""
    batch, channels, outputs = shape[0], shape[1], out[1]
    rank, places = len(at.kernel), batch * prod(out[2:])
    depthwise = group == channels == outputs
    padded = x
    if any(at.begin) or any(at.end):
        padded = tape.op("Pad", x, tape.ints(0, 0, *at.begin, 0, 0, *at.end), mode="constant")
    front = [1, 0, *range(2, rank + 2)]
    if not depthwise:
        padded = tape.transpose(padded, front)
        dy = tape.transpose(dy, front)
        dy = tape.reshape(dy, (outputs, places) if group == 1 else (group, outputs // group, places))
    axes, steps = tape.ints(*range(2, rank + 2)), tape.ints(*at.strides)
    found = []
    for tap in product(*map(range, at.kernel)):
        start = [i * d for i, d in zip(tap, at.dilations, strict=True)]
        stop = [i + s * (n - 1) + 1 for i, s, n in zip(start, at.strides, out[2:], strict=True)]
        seen = padded
        whole = [size + b + e for size, b, e in zip(shape[2:], at.begin, at.end, strict=True)]
        if any(start) or stop != whole or any(s != 1 for s in at.strides):
            seen = tape.op("Slice", padded, tape.ints(*start), tape.ints(*stop), axes, steps)
        if depthwise:
            part = tape.sum(tape.mul(seen, dy), [0, *range(2, rank + 2)], keepdims=False)
        elif group == 1:
            part = tape.op("Gemm", dy, tape.reshape(seen, (channels, places)), transB=1)
        else:
            seen = tape.reshape(seen, (group, channels // group, places))
            part = tape.op("MatMul", dy, tape.transpose(seen, (0, 2, 1)))
        found.append(tape.reshape(part, (outputs, channels // group, 1)))
    joined = found[0] if len(found) == 1 else tape.op("Concat", *found, axis=2)
    return tape.reshape(joined, kernel)


RULES: dict[str, Rule] = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _conv_transpose}
