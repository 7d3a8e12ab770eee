"""Rules of operators that are told sizes, and of Shape, which tells them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.operators import operator
from onnxsqueeze.graph.shapes.known import Literal
from onnxsqueeze.techniques.pruning.axes.place import COMPUTED, Place, Side, broadcast

__all__ = ["constant_of_shape", "expand", "pad", "resize", "shape_of", "tile"]


def expand(at: Place) -> str | None:
    """Tie the axis to where it goes, if it is not repeated."""
    if at.side == "in" and at.slot > 0:
        return COMPUTED
    before, after = at.rank("in", 0), at.rank("out", 0)
    target = at.tracer.sizes.count(at.node.inputs[1])
    if before is None or after is None or target is None:
        return "the number of axes at 'Expand' is unknown"
    reason = broadcast(at, [0], [0])
    out = at.axis + (after - before if at.side == "in" else 0)
    index = out - (after - target)
    return reason or (at.sized(1, index, "out", 0, out) if index >= 0 else None)


def constant_of_shape(at: Place) -> str | None:
    """Let the size follow."""
    return at.sized(0, at.axis, "out", 0, at.axis) if at.side == "out" else COMPUTED


def resize(at: Place) -> str | None:
    """Let the axes pass that keep their size."""
    node = at.node
    if at.side == "in" and at.slot > 0:
        return COMPUTED
    mode = str(node.attrs.get("coordinate_transformation_mode", ""))
    if mode.startswith("tf_") or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"'{node.op}' is in the mode '{mode}'"
    other: Side = "out" if at.side == "in" else "in"
    rank = at.rank("in", 0)
    if rank is None:
        return f"the number of axes at '{node.op}' is unknown"
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    if at.axis not in axes:
        return at.same(other, 0, at.axis)
    index = axes.index(at.axis)
    slot = 1 if node.op == "Upsample" or at.tracer.opset < 11 else 2
    scales = node.attrs.get("scales")
    if scales is None and at.port("in", slot) is not None:
        values = at.tracer.sizes.view.value(node.inputs[slot])
        scales = None if values is None else list(values.reshape(-1))
    if scales is not None and len(scales):
        return at.same(other, 0, at.axis) if scales[index] == 1 else f"'{node.op}' scales its axis"
    if at.port("in", 3) is None:
        return f"the scales of '{node.op}' are computed"
    found = at.tracer.sizes.element(node, 3, index)
    if isinstance(found, Literal) and found.value != at.length:
        return f"'{node.op}' scales its axis"
    return at.same(other, 0, at.axis) or at.sized(3, index, "out", 0, at.axis)


def pad(at: Place) -> str | None:
    """Let the axes pass that are not padded."""
    node, rank = at.node, at.rank("in", 0)
    if rank is None or (at.side == "in" and at.slot > 0):
        return "the number of axes at 'Pad' is unknown"
    axes = list(range(rank))
    if at.port("in", 3) is not None:
        given = at.tracer.sizes.integers(node, 3)
        if given is None:
            return "the axes of 'Pad' are computed"
        axes = [a % rank for a in given]
    if at.axis in axes:
        for index in (axes.index(at.axis), axes.index(at.axis) + len(axes)):
            if "pads" in node.attrs:
                value: int | None = int(node.attrs["pads"][index])
            else:
                found = at.tracer.sizes.element(node, 1, index)
                value = found.value if isinstance(found, Literal) else None
            if value != 0:
                return "'Pad' adds to its axis" if value is not None else "the widths of 'Pad' are computed"
    return at.same("out" if at.side == "in" else "in", 0, at.axis)


def tile(at: Place) -> str | None:
    """Let the axes pass that are not repeated."""
    found = at.tracer.sizes.element(at.node, 1, at.axis)
    if (at.side == "in" and at.slot > 0) or not isinstance(found, Literal) or found.value != 1:
        return "'Tile' repeats its axis"
    return at.same("out" if at.side == "in" else "in", 0, at.axis)


def shape_of(at: Place) -> str | None:
    """Follow the size of the axis to where it is used."""
    rank = at.rank("in", 0)
    if at.side == "out" or rank is None:
        return COMPUTED
    start, stop = at.node.attrs.get("start", 0), at.node.attrs.get("end")
    axes = list(range(rank)[slice(int(start), None if stop is None else int(stop))])
    waiting = [(at.node.outputs[0], axes.index(at.axis))] if at.axis in axes else []
    while waiting:
        tensor, index = waiting.pop()
        if at.tracer.sizes.view.is_output(tensor):
            return f"its size is the output '{tensor.name}'"
        for node in {id(n): n for n in tensor.outputs}.values():
            for slot, read in enumerate(node.inputs):
                if read is tensor:
                    reason = _size_read(at, node, slot, index, waiting)
                    if reason:
                        return reason
    return None


def _size_read(at: Place, node: gs.Node, slot: int, index: int, waiting: list[tuple[gs.Tensor, int]]) -> str | None:
    """Follow one element of a shape through one of its readers."""
    op, sizes = operator(node), at.tracer.sizes
    if sizes.view.in_body(node):
        return "its size is read in the body of another node"
    y = node.outputs[0]
    if op in ("Cast", "Identity", "Squeeze", "Unsqueeze") and slot == 0:
        waiting.append((y, index))
    elif op == "Concat":
        counts = [sizes.count(t) for t in node.inputs[:slot]]
        if None in counts:
            return COMPUTED
        waiting.append((y, sum(c for c in counts if c is not None) + index))
    elif op in ("Slice", "Gather") and slot == 0:
        picked = sizes.picked(node)
        if picked is None:
            return COMPUTED
        waiting.extend((y, i) for i, p in enumerate(picked) if p == index)
    elif (op, slot) in (("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Resize", 3)):
        rank = sizes.rank(y)
        target = sizes.count(node.inputs[slot])
        if rank is None or target is None or (op == "Resize" and "axes" in node.attrs):
            return COMPUTED
        at.tracer.equal((at.mine, at.axis), (y, index + rank - target), COMPUTED)
    else:
        return f"its size goes into '{op}' ({y.name})"
    return None
