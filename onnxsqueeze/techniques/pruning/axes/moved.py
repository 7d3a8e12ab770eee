"""Rules of operators that put channels elsewhere: Concat, Split, Transpose, Slice, Gather and the like."""

from __future__ import annotations

import numpy as np

from onnxsqueeze.techniques.pruning.axes.place import COMPUTED, Place, Side, first

__all__ = ["concat", "gather", "slice_", "split", "squeeze", "transpose"]


def concat(at: Place) -> str | None:
    """Tie the inputs to their part of the output."""
    node, rank = at.node, at.rank(at.side, at.slot)
    if rank is None:
        return "the number of axes at 'Concat' is unknown"
    axis = int(node.attrs.get("axis", 1)) % rank
    if at.axis != axis:
        return first([at.same("in", i, at.axis) for i in range(len(node.inputs)) if (at.side, at.slot) != ("in", i)]
                      + [at.same("out", 0, at.axis) if at.side == "in" else None])  # fmt: skip
    sizes = [at.size("in", i, axis) for i in range(len(node.inputs))]
    known = [s for s in sizes if s is not None]
    if len(known) != len(sizes):
        return "the sizes of the inputs of 'Concat' are unknown"
    if at.side == "in":
        start = sum(known[: at.slot])
        at.tie("out", 0, axis, np.arange(at.length), start + np.arange(at.length), sum(known))
        return None
    start = 0
    for i, size in enumerate(known):
        at.tie("in", i, axis, start + np.arange(size), np.arange(size), size)
        start += size
    return None


def split(at: Place) -> str | None:
    """Tie the outputs to their part of the input."""
    node, rank = at.node, at.rank(at.side, at.slot)
    if rank is None:
        return "the number of axes at 'Split' is unknown"
    if at.side == "in" and at.slot > 0:
        return COMPUTED
    axis = int(node.attrs.get("axis", 0)) % rank
    if at.axis != axis:
        return first([at.same("out", i, at.axis) for i in range(len(node.outputs)) if (at.side, at.slot) != ("out", i)]
                      + [at.same("in", 0, at.axis) if at.side == "out" else None])  # fmt: skip
    given = at.tracer.sizes.integers(node, 1, "split")
    if given is None and at.port("in", 1) is not None:
        return "the sizes of 'Split' are computed"
    total = at.length if at.side == "in" else at.size("in", 0, axis)
    if given is None:
        if total is None or node.attrs.get("num_outputs", len(node.outputs)) != len(node.outputs):
            return "the sizes of 'Split' are unknown"
        each = -(-total // len(node.outputs))
        given = [min(each, total - i * each) for i in range(len(node.outputs))]
    if len(given) != len(node.outputs) or min(given) <= 0:
        return "the sizes of 'Split' contradict each other"
    at.tracer.split(node, axis, given)
    start = 0
    for i, size in enumerate(given):
        if at.side == "in":
            at.tie("out", i, axis, start + np.arange(size), np.arange(size), size)
        elif i == at.slot:
            at.tie("in", 0, axis, np.arange(size), start + np.arange(size), sum(given))
        start += size
    return None


def transpose(at: Place) -> str | None:
    """Tie the axis to where it goes."""
    rank = at.rank(at.side, at.slot)
    perm = at.node.attrs.get("perm") or (None if rank is None else list(range(rank))[::-1])
    if perm is None:
        return "the number of axes at 'Transpose' is unknown"
    if at.side == "in":
        return at.same("out", 0, list(perm).index(at.axis))
    return at.same("in", 0, int(perm[at.axis]))


def squeeze(at: Place) -> str | None:
    """Tie the axis to where it goes."""
    node = at.node
    if at.side == "in" and at.slot > 0:
        return COMPUTED
    shape = at.tracer.sizes.shape(node.inputs[0])
    axes = at.tracer.sizes.integers(node, 1, "axes")
    if shape is None or (axes is None and (node.op == "Unsqueeze" or at.port("in", 1) is not None)):
        return f"the axes of '{node.op}' are unknown"
    if axes is None:
        if not all(isinstance(d, int) for d in shape):
            return f"the axes of '{node.op}' are unknown"
        axes = [i for i, d in enumerate(shape) if d == 1]
    rank = len(shape) + (len(axes) if node.op == "Unsqueeze" else 0)
    gone = {a % rank for a in axes}
    longer = [i for i in range(rank) if i not in gone]
    if (node.op == "Unsqueeze") == (at.side == "in"):
        return at.same("out" if at.side == "in" else "in", 0, longer[at.axis])
    if at.axis in gone:
        return f"'{node.op}' drops its axis"
    return at.same("out" if at.side == "in" else "in", 0, longer.index(at.axis))


def slice_(at: Place) -> str | None:
    """Tie what is cut out to where it was."""
    node, rank, sizes = at.node, at.rank("in", 0), at.tracer.sizes
    starts, ends = sizes.integers(node, 1, "starts"), sizes.integers(node, 2, "ends")
    axes = sizes.integers(node, 3, "axes")
    if axes is None and (at.port("in", 3) is not None or starts is None):
        return "the axes of 'Slice' are computed"
    if rank is None or (at.side == "in" and at.slot > 0):
        return "the number of axes at 'Slice' is unknown"
    axes = list(range(len(starts or ()))) if axes is None else [a % rank for a in axes]
    other: Side = "out" if at.side == "in" else "in"
    if at.axis not in axes:
        return at.same(other, 0, at.axis)
    index = axes.index(at.axis)
    steps = sizes.integers(node, 4) if at.port("in", 4) is not None else [1] * len(axes)
    if starts is None or ends is None or steps is None or steps[index] != 1:
        return "'Slice' cuts its axis with numbers that are computed or with a step"
    length = at.length if at.side == "in" else at.size("in", 0, at.axis)
    if length is None:
        return "the size that 'Slice' cuts is unknown"
    first, last, _ = slice(starts[index], ends[index]).indices(length)
    if last <= first:
        return "'Slice' leaves nothing"
    inside = np.arange(first, last)
    if at.side == "in":
        at.tie("out", 0, at.axis, inside, inside - first, last - first)
    else:
        at.tie("in", 0, at.axis, inside - first, inside, length)
    x = node.inputs[0]
    for slot, name, value, given in ((1, "starts", first, starts), (2, "ends", last, ends)):
        if (name == "starts" and given[index] == 0) or (name == "ends" and given[index] >= length):
            continue
        where: tuple[int, ...] | str = name if name in node.attrs else (slot,)
        at.tracer.boundary(node, where, index, x, at.axis, value)
    return None


def gather(at: Place) -> str | None:
    """Tie what constant indices pick to where it was; the other axes of the data pass."""
    node, rank, ri = at.node, at.rank("in", 0), at.rank("in", 1)
    if rank is None or ri is None or (at.side == "in" and at.slot > 0):
        return "'Gather' picks with it"
    axis = int(node.attrs.get("axis", 0)) % rank
    mine = at.axis if at.side == "in" else at.axis if at.axis < axis else at.axis - ri + 1
    if at.side == "out" and axis <= at.axis < axis + ri and ri != 1:
        return "'Gather' makes its axis"
    if mine != axis:
        if at.constant(0):
            at.tracer.role(node.inputs[0], mine, "producer", node)
        return at.same("out", 0, mine + ri - 1 if mine > axis else mine) if at.side == "in" else at.same("in", 0, mine)
    indices = at.tracer.sizes.integers(node, 1)
    if indices is None or ri > 1:
        return "'Gather' picks from its axis with indices that are computed"
    length = at.length if at.side == "in" else at.size("in", 0, axis)
    if length is None:
        return "the size that 'Gather' picks from is unknown"
    picked = np.array(indices, np.int64) % length
    at.tracer.picks(node, node.inputs[0], axis)
    if ri == 0:
        at.tracer.block(at.mine, at.axis, picked, "'Gather' takes it out of its axis")
    elif at.side == "in":
        at.tie("out", 0, axis, picked, np.arange(len(picked)), len(picked))
    else:
        at.tie("in", 0, axis, np.arange(len(picked)), picked, length)
    return None
