"""Rules of linear operators, where channels end and others begin: Conv, ConvTranspose, Gemm and MatMul."""

from __future__ import annotations

import numpy as np

from onnxsqueeze.techniques.pruning.axes.place import Place, Side, broadcast, first

__all__ = ["convolution", "matrix_product"]


def convolution(at: Place) -> str | None:
    """Tie channels to the rows and columns of the weight; those of a group leave as a whole."""
    node, transposed = at.node, at.node.op == "ConvTranspose"
    group = int(node.attrs.get("group", 1))
    weight = at.port("in", 1)
    shape = at.tracer.sizes.shape(weight) if weight is not None else None
    if weight is None or shape is None or not isinstance(shape[0], int) or not isinstance(shape[1], int):
        return f"the weight of '{node.op}' has an unknown shape"
    if at.axis == 0 and at.side == "in" and at.slot == 0:
        return at.same("out", 0, 0)
    if at.axis == 0 and at.side == "out":
        return at.same("in", 0, 0)
    if at.axis > 1:
        return f"it is a spatial axis of '{node.op}'"
    if not at.constant(1):
        return f"the weight of '{node.op}' is computed at run time"
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    rows = int(shape[out_axis]) // (1 if transposed else group)
    columns = int(shape[in_axis]) // (group if transposed else 1)
    ports: dict[tuple[Side, int, int], tuple[str, int]] = {  # port and axis: which channels, and how many in a group
        ("in", 0, 1): ("in", columns),
        ("in", 1, in_axis): ("in", columns),
        ("in", 1, out_axis): ("out", rows),
        ("in", 2, 0): ("out", rows),
        ("out", 0, 1): ("out", rows),
    }
    here = (at.side, at.slot, at.axis)
    if group == 1:
        kind = ports[here][0]
        at.tracer.role(
            weight, out_axis if kind == "out" else in_axis, "producer" if kind == "out" else "consumer", node
        )
        return first(at.same(*port) for port, (k, _) in ports.items() if k == kind and port != here)
    inner = ("in", 1, out_axis if transposed else in_axis)
    if at.length != group * ports[here][1] and here != inner:
        return f"the sizes at '{node.op}' contradict each other"
    if here == inner:
        return f"it lies within the groups of '{node.op}'"
    for port, (_, each) in ports.items():
        if port not in (here, inner) and at.port(*port[:2]) is not None:
            _in_groups(at, port, ports[here][1], each, group)
    x = at.port("in", 0)
    if x is not None:
        at.tracer.groups(node, x, 1, ports["in", 0, 1][1])
    return None


def _in_groups(at: Place, port: tuple[Side, int, int], mine: int, other: int, group: int) -> None:
    """Tie all indices of each group to all indices of the same group elsewhere."""
    a, b = np.arange(group * mine, dtype=np.int64), np.arange(group * other, dtype=np.int64)
    at.tie(*port, np.concatenate([a, b // other * mine]), np.concatenate([a // mine * other, b]), group * other)


def matrix_product(at: Place) -> str | None:
    """Tie the axes of a Gemm or MatMul that have one letter in its formula."""
    node = at.node
    if (at.side, at.slot) == ("in", 2):
        return broadcast(at, [2], [0])
    letters = _letters(at)
    if letters is None:
        return "the number of axes at 'MatMul' is unknown"
    letter = letters[at.side, at.slot][at.axis]
    summed, batch = letter == "k", letter not in "kmn"
    if summed and not (at.constant(0) or at.constant(1)):
        return f"'{node.op}' sums over it, of two tensors that are both computed"
    for (side, slot), text in letters.items():
        if letter not in text:
            continue
        axis = text.index(letter)
        tensor = at.port(side, slot)
        if side == "in" and at.constant(slot) and tensor is not None and not batch:
            at.tracer.role(tensor, axis, "consumer" if summed else "producer", node)
        if (side, slot) == (at.side, at.slot):
            continue
        size = at.size(side, slot, axis)
        if batch and (size is None or at.length == 1 != size):
            return "a batch axis at 'MatMul' is of unknown size or repeated"
        if not (batch and size == 1 != at.length) and (reason := at.same(side, slot, axis)):
            return reason
    if batch and letter in letters["in", 0] and letter in letters["in", 1]:
        at.tracer.heads(at.mine, at.axis)
    return broadcast(at, [2], [0]) if node.op == "Gemm" and at.side == "out" else None


def _letters(at: Place) -> dict[tuple[Side, int], str] | None:
    """Return a letter for each axis: k is summed over, m and n are rows and columns, capitals are batch axes."""
    if at.node.op == "Gemm":
        one = "km" if at.node.attrs.get("transA", 0) else "mk"
        two = "nk" if at.node.attrs.get("transB", 0) else "kn"
        return {("in", 0): one, ("in", 1): two, ("out", 0): "mn"}
    a, b = at.rank("in", 0), at.rank("in", 1)
    if not a or not b:
        return None
    batch = "".join(chr(ord("A") + i) for i in reversed(range(max(a, b) - 2)))
    return {
        ("in", 0): "k" if a == 1 else batch[len(batch) - a + 2 :] + "mk",
        ("in", 1): "k" if b == 1 else batch[len(batch) - b + 2 :] + "kn",
        ("out", 0): batch + ("m" if a > 1 else "") + ("n" if b > 1 else ""),
    }
