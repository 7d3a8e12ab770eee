"""The rule of Reshape and Flatten: channels that become blocks of channels, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxsqueeze.graph.shapes.known import Literal
from onnxsqueeze.graph.shapes.products import Run, product
from onnxsqueeze.techniques.pruning.axes.place import COMPUTED, Place

__all__ = ["reshape"]


def reshape(at: Place) -> str | None:
    """Tie an axis to the one that it became, is a factor of, or has as a factor.

    Of several factors one is chosen, the outermost first: its indices are blocks of neighbours, such as heads.
    """
    node = at.node
    if at.side == "in" and at.slot > 0:
        return COMPUTED
    runs = at.tracer.sizes.runs(node)
    if runs is None:
        return f"the shapes at '{node.op}' are unknown"
    index, run = next((i, r) for i, r in enumerate(runs) if at.axis in (r.before if at.side == "in" else r.after))
    if not run.before or not run.after:
        return f"'{node.op}' drops its axis"
    if run.same:
        before, after = run.before[0], run.after[0]
        reason = at.same("out" if at.side == "in" else "in", 0, after if at.side == "in" else before)
    elif run.known:
        before, after = _partners(at, run, index)
        reason = _factors(at, run, before, after)
    elif _leading(at, run):
        before, after = run.before[0], run.after[0]
        reason = _blocks(at, run)
    else:
        return f"the sizes that '{node.op}' puts together are unknown"
    if reason or node.op == "Flatten":
        return reason
    return _follow(at, runs, before, after)


def _leading(at: Place, run: Run) -> bool:
    """Return whether this is the outermost axis, and one of the two outermost sizes is a multiple of the other."""
    one, two = run.sizes[0][0], run.sizes[1][0]
    if not isinstance(one, int) or not isinstance(two, int) or product(run.sizes[0]) != product(run.sizes[1]):
        return False
    outermost = at.axis == (run.before[0] if at.side == "in" else run.after[0])
    return outermost and min(one, two) > 0 and max(one, two) % min(one, two) == 0


def _blocks(at: Place, run: Run) -> str | None:
    """Tie the indices of the longer outermost axis, in blocks, to those of the shorter one."""
    one, two = int(run.sizes[0][0]), int(run.sizes[1][0])
    each = np.arange(max(one, two), dtype=np.int64)
    before, after = each // (len(each) // one), each // (len(each) // two)
    if at.side == "in":
        at.tie("out", 0, run.after[0], before, after, two)
    else:
        at.tie("in", 0, run.before[0], after, before, one)
    return None


def _partners(at: Place, run: Run, index: int) -> tuple[int, int]:
    """Return the axis before and the axis after that this axis is tied to."""
    partners = at.tracer.partners
    key = id(at.node), index
    if key not in partners:
        before, after = (
            [a for a, size in zip(axes, sizes, strict=True) if size != 1] or [axes[0]]
            for axes, sizes in zip((run.before, run.after), run.sizes, strict=True)
        )
        choice = at.tracer.choice
        at.tracer.options(len(after) if at.side == "in" else len(before))
        if at.side == "in":
            partners[key] = at.axis, after[min(choice, len(after) - 1)]
        else:
            partners[key] = before[min(choice, len(before) - 1)], at.axis
    before_axis, after_axis = partners[key]
    return (at.axis, after_axis) if at.side == "in" else (before_axis, at.axis)


def _factors(at: Place, run: Run, before: int, after: int) -> str | None:
    """Tie indices of two axes that hold a common element."""
    sizes = [[int(s) for s in side] for side in run.sizes]
    elements = np.arange(int(np.prod(sizes[0], dtype=np.int64)))
    if len(elements) > 1 << 22:
        return f"'{at.node.op}' has too many elements to be followed"
    found = []
    for axes, axis, own in ((run.before, before, sizes[0]), (run.after, after, sizes[1])):
        place = axes.index(axis)
        found.append(elements // int(np.prod(own[place + 1 :], dtype=np.int64)) % own[place])
    pairs = np.unique(found[0] * (int(found[1].max()) + 1) + found[1])
    one, two = np.divmod(pairs, int(found[1].max()) + 1)
    if at.side == "in":
        at.tie("out", 0, after, one, two, sizes[1][run.after.index(after)])
    else:
        at.tie("in", 0, before, two, one, sizes[0][run.before.index(before)])
    return None


def _follow(at: Place, runs: Sequence[Run], before: int, after: int) -> str | None:
    """Let the shape of a Reshape follow."""
    node, zero = at.node, not at.node.attrs.get("allowzero", 0)
    rank = sum(len(r.after) for r in runs)
    for index in {before, after}:
        found = at.tracer.sizes.element(node, 1, index) if index < rank else None
        if isinstance(found, Literal) and found.value == 0 and zero:  # the size of the axis in the same place
            at.tracer.equal((node.inputs[0], index), (node.outputs[0], index), "'Reshape' copies its size elsewhere")
            if index == after:
                return None
    found = at.tracer.sizes.element(node, 1, after)
    if isinstance(found, Literal) and found.value == -1:
        return None
    return at.sized(1, after, "out", 0, after)
