"""Rules of operators that act on every channel by itself: what is elementwise, pools, normalizes or reduces."""

from __future__ import annotations

from onnxsqueeze.techniques.pruning.axes.place import Place, Side, broadcast

__all__ = ["along", "elementwise", "layer_normalization", "per_channel", "reduction", "spatial"]


def elementwise(at: Place) -> str | None:
    """Tie the axis to that of all inputs and outputs that are not broadcast along it."""
    if at.tracer.opset < 7 and len(at.node.inputs) > 1:
        return f"'{at.node.op}' broadcasts as operator sets before 7 did"
    return broadcast(at, range(len(at.node.inputs)), range(len(at.node.outputs)))


def per_channel(at: Place) -> str | None:
    """Tie axis 1 to the only axis of all further inputs; all other axes pass."""
    if len([t for t in at.node.outputs if t.name]) > 1 or at.node.attrs.get("training_mode", 0):
        return f"'{at.node.op}' is in training mode"
    if not at.node.attrs.get("spatial", 1):
        return "'BatchNormalization' has parameters for every position"
    if (at.side, at.slot) == ("in", 0) or at.side == "out":
        other: Side = "out" if at.side == "in" else "in"
        reason = at.same(other, 0, at.axis)
        if at.axis != 1:
            return f"'{at.node.op}' runs over its axis" if at.node.op == "InstanceNormalization" and at.axis else reason
    else:
        reason = at.same("in", 0, 1) or at.same("out", 0, 1)
    for slot in range(1, len(at.node.inputs)):
        if not (at.side == "in" and at.slot == slot):
            reason = reason or at.same("in", slot, 0)
    return reason


def spatial(at: Place) -> str | None:
    """Let the first two axes pass."""
    if at.slot > 0 or sum(bool(t.name) for t in at.node.outputs) > 1:
        return f"'{at.node.op}' gives indices"
    if at.axis > 1:
        return f"it is a spatial axis of '{at.node.op}'"
    return at.same("out" if at.side == "in" else "in", 0, at.axis)


def layer_normalization(at: Place) -> str | None:
    """Let the axes pass that are not normalised over."""
    rank = at.rank("in", 0)
    if rank is None:
        return f"the number of axes at '{at.node.op}' is unknown"
    first = int(at.node.attrs.get("axis", -1)) % rank
    if (at.side == "in" and at.slot > 0) or at.axis >= first:
        return f"'{at.node.op}' runs over its axis"
    for slot in range(len(at.node.outputs)):
        reason = at.same("out", slot, at.axis) if (at.side, at.slot) != ("out", slot) else None
        if reason:
            return reason
    return at.same("in", 0, at.axis) if at.side == "out" else None


def along(at: Place) -> str | None:
    """Let the axes pass that the operator does not run over."""
    node, rank = at.node, at.rank("in", 0)
    if rank is None or (at.side == "in" and at.slot > 0):
        return f"the number of axes at '{node.op}' is unknown"
    old = node.op in ("Softmax", "LogSoftmax", "Hardmax") and at.tracer.opset < 13
    default = 1 if old else -1
    if node.op == "CumSum":
        axes = at.tracer.sizes.integers(node, 1) or list(range(rank))
    else:
        axes = [int(node.attrs.get("axis", default))]
    over = {a % rank for a in axes}
    if old:
        over = set(range(min(over), rank))
    if at.axis in over:
        return f"'{node.op}' runs over its axis"
    for slot in range(len(node.outputs)):
        if (at.side, at.slot) != ("out", slot) and (reason := at.same("out", slot, at.axis)):
            return reason
    return at.same("in", 0, at.axis) if at.side == "out" else None


def reduction(at: Place) -> str | None:
    """Let the axes pass that are not reduced."""
    node, rank = at.node, at.rank("in", 0)
    if rank is None or (at.side == "in" and at.slot > 0):
        return f"the number of axes at '{node.op}' is unknown"
    if node.op in ("ArgMax", "ArgMin"):
        over = {int(node.attrs.get("axis", 0)) % rank}
    else:
        axes = at.tracer.sizes.integers(node, 1, "axes")
        if not axes and (at.port("in", 1) is not None or not node.attrs.get("noop_with_empty_axes", 0)):
            return f"'{node.op}' runs over its axis"
        over = {a % rank for a in axes or ()}
    kept = [a for a in range(rank) if a not in over]
    before = after = list(range(rank))
    if not node.attrs.get("keepdims", 1):
        before, after = kept, list(range(len(kept)))
    if at.side == "in":
        return f"'{node.op}' runs over its axis" if at.axis in over else at.same("out", 0, after[before.index(at.axis)])
    axis = before[at.axis]
    return f"'{node.op}' runs over its axis" if axis in over else at.same("in", 0, axis)
