"""How the indices along one axis of an operator's input or output follow those of its other inputs and outputs.

A rule is called for one axis of one input or output, a ``Place``; it ties the indices of that axis to those of the
other tensors that can only be removed together with them, and returns in words why that is not possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.operators import ELEMENTWISE, GLOBAL_POOLS, POOLS, REDUCTIONS, operator
from onnxsqueeze.sizes import Dimension, Run, Sizes
from onnxsqueeze.sizes import Literal as Number

__all__ = ["Indices", "Place", "Rule", "Side", "Tracer", "rule_of"]

Indices = NDArray[np.int64]
Side = Literal["in", "out"]


class Tracer(Protocol):
    """What takes down what the rules find."""

    sizes: Sizes
    opset: int
    choice: int
    partners: dict[tuple[int, int], tuple[int, int]]

    def options(self, count: int) -> None:
        """Take down that a reshaped axis has several factors to choose from."""

    def length(self, tensor: gs.Tensor, axis: int) -> int | None:
        """Return the number of indices of an axis, None if it is not known."""

    def tie(
        self, mine: tuple[gs.Tensor, int, Indices | None], other: tuple[gs.Tensor, int, Indices | None], length: int
    ) -> None:
        """Take down that indices leave together, pairwise; None are all of them, of which there are ``length``."""

    def role(self, tensor: gs.Tensor, axis: int, role: str, node: gs.Node) -> None:
        """Take down what a weight's axis is for."""

    def constant(self, tensor: gs.Tensor) -> bool:
        """Return whether the tensor is a constant."""

    def boundary(
        self, node: gs.Node, path: tuple[int, ...] | str, index: int, tensor: gs.Tensor, axis: int, value: int
    ) -> None:
        """Take down a number in the model that must become the count of indices under ``value`` that are left."""

    def picks(self, node: gs.Node, tensor: gs.Tensor, axis: int) -> None:
        """Take down that the constant indices of a Gather are positions along an axis of its data."""

    def groups(self, node: gs.Node, tensor: gs.Tensor, axis: int, each: int) -> None:
        """Take down that the attribute ``group`` is the length of an axis over ``each``."""

    def split(self, node: gs.Node, axis: int) -> None:
        """Take down that the sizes of a Split are the lengths of its outputs."""

    def equal(self, one: tuple[gs.Tensor, int], other: tuple[gs.Tensor, int], reason: str) -> None:
        """Take down that two axes must lose the same indices, or else neither may lose any."""

    def block(self, tensor: gs.Tensor, axis: int, indices: Indices | None, reason: str) -> None:
        """Take down that some indices must stay."""

    def heads(self, tensor: gs.Tensor, axis: int) -> None:
        """Take down that the axis counts independent products of matrices."""


class Place:
    """One axis of one input or output of a node."""

    def __init__(self, tracer: Tracer, node: gs.Node, side: Side, slot: int, axis: int, length: int) -> None:
        self.tracer = tracer
        self.node = node
        self.side = side
        self.slot = slot
        self.axis = axis
        self.length = length

    def port(self, side: Side, slot: int) -> gs.Tensor | None:
        """Return an input or output, None if it is left out."""
        tensors = self.node.inputs if side == "in" else self.node.outputs
        return tensors[slot] if slot < len(tensors) and tensors[slot].name else None

    def rank(self, side: Side, slot: int) -> int | None:
        """Return the number of axes of an input or output."""
        tensor = self.port(side, slot)
        return None if tensor is None else self.tracer.sizes.rank(tensor)

    def size(self, side: Side, slot: int, axis: int) -> int | None:
        """Return the length of an axis of an input or output."""
        tensor = self.port(side, slot)
        return None if tensor is None else self.tracer.length(tensor, axis)

    def same(self, side: Side, slot: int, axis: int) -> str | None:
        """Tie all indices to those of an axis of another input or output."""
        tensor = self.port(side, slot)
        if tensor is None:
            return None
        size = self.tracer.length(tensor, axis)
        if size is not None and size != self.length:
            return f"the sizes at '{self.node.op}' contradict each other"
        self.tracer.tie((self.mine, self.axis, None), (tensor, axis, None), self.length)
        return None

    def tie(self, side: Side, slot: int, axis: int, mine: Indices, other: Indices, length: int) -> None:
        """Tie indices of this axis to indices of another one, pairwise; that one has ``length``."""
        tensor = self.port(side, slot)
        if tensor is not None:
            self.tracer.tie((self.mine, self.axis, mine), (tensor, axis, other), length)

    @property
    def mine(self) -> gs.Tensor:
        """The input or output itself."""
        tensor = self.port(self.side, self.slot)
        assert tensor is not None
        return tensor

    def constant(self, slot: int) -> bool:
        """Return whether an input is constant."""
        tensor = self.port("in", slot)
        return tensor is not None and self.tracer.constant(tensor)

    def sized(self, slot: int, index: int, side: Side, port: int, axis: int) -> str | None:
        """Let element ``index`` of an input, a size, follow the length of an axis of an input or output."""
        tensor = self.port(side, port)
        if tensor is None:
            return None
        found = self.tracer.sizes.element(self.node, slot, index)
        if isinstance(found, Dimension):
            self.tracer.equal((found.tensor, found.axis), (tensor, axis), _COMPUTED)
            return None
        if found is None:
            return _COMPUTED
        if found.value == self.tracer.length(tensor, axis):
            self.tracer.boundary(self.node, found.path, found.index, tensor, axis, found.value)
        elif found.value != 1:
            return f"the sizes at '{self.node.op}' contradict each other"
        return None


Rule = Callable[[Place], "str | None"]
_COMPUTED = "its size goes into a computation that cannot be followed"


def rule_of(node: gs.Node) -> Rule:
    """Return the rule of a node's operator."""
    return _RULES.get(operator(node), _unknown)


def _unknown(at: Place) -> str:
    return f"the operator '{operator(at.node)}' ({at.node.outputs[0].name}) is not known to keep channels apart"


# -- operators that act on every channel by itself ---------------------------------------------------------------------


def elementwise(at: Place) -> str | None:
    """Tie the axis to that of all inputs and outputs that are not broadcast along it."""
    if "broadcast" in at.node.attrs:
        return f"'{at.node.op}' broadcasts as operator sets before 7 did"
    return broadcast(at, range(len(at.node.inputs)), range(len(at.node.outputs)))


def broadcast(at: Place, inputs: Sequence[int], outputs: Sequence[int], trailing: int = 0) -> str | None:
    """Tie axes that are equally far from the last one; the last ``trailing`` axes are left out."""
    ports: list[tuple[Side, int, int]] = []
    for side, slots in (("in", inputs), ("out", outputs)):
        for slot in slots:
            if at.port(side, slot) is not None:  # type: ignore[arg-type]
                rank = at.rank(side, slot)  # type: ignore[arg-type]
                if rank is None:
                    return f"the number of axes at '{at.node.op}' is unknown"
                ports.append((side, slot, rank))  # type: ignore[arg-type]
    rank = next(r for side, slot, r in ports if (side, slot) == (at.side, at.slot))
    back = rank - at.axis
    if back <= trailing:
        return f"'{at.node.op}' runs over its axis"
    for side, slot, other in ports:
        if other < back or (side, slot) == (at.side, at.slot):
            continue
        size = at.size(side, slot, other - back)
        if size is None and side == "out" and at.length > 1:
            size = at.length
        if size is None:
            return f"the size of its axis at '{at.node.op}' is unknown"
        if size == at.length:
            at.same(side, slot, other - back)
        elif at.length == 1:
            return f"'{at.node.op}' spreads its only channel"
        elif size != 1:
            return f"the sizes at '{at.node.op}' contradict each other"
    return None


def per_channel(at: Place) -> str | None:
    """Tie axis 1 to the only axis of all further inputs; all other axes pass."""
    if len([t for t in at.node.outputs if t.name]) > 1 or at.node.attrs.get("training_mode", 0):
        return f"'{at.node.op}' is in training mode"
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


# -- linear operators --------------------------------------------------------------------------------------------------


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
        return _first(at.same(*port) for port, (k, _) in ports.items() if k == kind and port != here)
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
    if node.op == "Gemm":
        letters = {("in", 0): "km" if node.attrs.get("transA", 0) else "mk",
                   ("in", 1): "nk" if node.attrs.get("transB", 0) else "kn", ("out", 0): "mn"}  # fmt: skip
    else:
        a, b = at.rank("in", 0), at.rank("in", 1)
        if not a or not b:
            return "the number of axes at 'MatMul' is unknown"
        batch = "".join(chr(ord("A") + i) for i in reversed(range(max(a, b) - 2)))
        letters = {("in", 0): "k" if a == 1 else batch[len(batch) - a + 2 :] + "mk",
                   ("in", 1): "k" if b == 1 else batch[len(batch) - b + 2 :] + "kn",
                   ("out", 0): batch + ("m" if a > 1 else "") + ("n" if b > 1 else "")}  # fmt: skip
    if (at.side, at.slot) == ("in", 2):
        return _gemm_bias(at)
    letter = letters[at.side, at.slot][at.axis]
    if letter == "k" and not (at.constant(0) or at.constant(1)):
        return f"'{node.op}' sums over it, of two tensors that are both computed"
    for slot in (0, 1):
        tensor = at.port("in", slot)
        if tensor is not None and at.constant(slot) and letter in letters["in", slot] and letter in "kmn":
            axis = letters["in", slot].index(letter)
            at.tracer.role(tensor, axis, "consumer" if letter == "k" else "producer", node)
    for (side, slot), text in letters.items():
        if letter not in text or (side, slot) == (at.side, at.slot):
            continue
        axis = text.index(letter)
        size = at.size(side, slot, axis)  # type: ignore[arg-type]
        if letter in "kmn" or size == at.length:
            if reason := at.same(side, slot, axis):  # type: ignore[arg-type]
                return reason
        elif size != 1:
            return "the size of a batch axis at 'MatMul' is unknown"
        elif at.length == 1:
            continue
    if letter not in "kmn" and letter in letters["in", 0] and letter in letters["in", 1]:
        at.tracer.heads(at.mine, at.axis)
    return _gemm_bias(at) if node.op == "Gemm" and letter in "mn" else None


def _gemm_bias(at: Place) -> str | None:
    """Tie the bias of a Gemm, which is broadcast to the output."""
    if at.side == "in" and at.slot < 2:  # the output ties it when its turn comes
        return None
    return broadcast(at, [2], [0])


def _first(reasons: object) -> str | None:
    return next((r for r in list(reasons) if r), None)  # type: ignore[call-overload]


# -- operators that move channels --------------------------------------------------------------------------------------


def concat(at: Place) -> str | None:
    """Tie the inputs to their part of the output."""
    node, rank = at.node, at.rank(at.side, at.slot)
    if rank is None:
        return "the number of axes at 'Concat' is unknown"
    axis = int(node.attrs.get("axis", 1)) % rank
    if at.axis != axis:
        return _first([at.same("in", i, at.axis) for i in range(len(node.inputs)) if (at.side, at.slot) != ("in", i)]
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
        return _COMPUTED
    axis = int(node.attrs.get("axis", 0)) % rank
    if at.axis != axis:
        return _first([at.same("out", i, at.axis) for i in range(len(node.outputs)) if (at.side, at.slot) != ("out", i)]
                      + [at.same("in", 0, at.axis) if at.side == "out" else None])  # fmt: skip
    given = at.tracer.sizes.integers(node, 1, "split")
    if given is None and at.port("in", 1) is not None:
        return "the sizes of 'Split' are computed"
    total = at.length if at.side == "in" else at.size("in", 0, axis)
    if given is None:
        if total is None:
            return "the sizes of 'Split' are unknown"
        each = -(-total // len(node.outputs))
        given = [min(each, total - i * each) for i in range(len(node.outputs))]
    if len(given) != len(node.outputs) or min(given) <= 0:
        return "the sizes of 'Split' contradict each other"
    at.tracer.split(node, axis)
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
        return _COMPUTED
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


def reshape(at: Place) -> str | None:
    """Tie an axis to the one that it became, is a factor of, or has as a factor.

    Of several factors one is chosen, the outermost first: its indices are blocks of neighbours, such as heads.
    """
    node = at.node
    if at.side == "in" and at.slot > 0:
        return _COMPUTED
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
    else:
        return f"the sizes that '{node.op}' puts together are unknown"
    if reason or node.op == "Flatten":
        return reason
    return _follow(at, runs, before, after)


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
        if isinstance(found, Number) and found.value == 0 and zero:  # the size of the axis in the same place
            at.tracer.equal((node.inputs[0], index), (node.outputs[0], index), "'Reshape' copies its size elsewhere")
            if index == after:
                return None
    found = at.tracer.sizes.element(node, 1, after)
    if isinstance(found, Number) and found.value == -1:
        return None
    return at.sized(1, after, "out", 0, after)


def expand(at: Place) -> str | None:
    """Tie the axis to where it goes, if it is not repeated."""
    if at.side == "in" and at.slot > 0:
        return _COMPUTED
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
    return at.sized(0, at.axis, "out", 0, at.axis) if at.side == "out" else _COMPUTED


def resize(at: Place) -> str | None:
    """Let the axes pass that keep their size."""
    node = at.node
    if at.side == "in" and at.slot > 0:
        return _COMPUTED
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
    if isinstance(found, Number) and found.value != at.length:
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
                value = found.value if isinstance(found, Number) else None
            if value != 0:
                return "'Pad' adds to its axis" if value is not None else "the widths of 'Pad' are computed"
    return at.same("out" if at.side == "in" else "in", 0, at.axis)


def tile(at: Place) -> str | None:
    """Let the axes pass that are not repeated."""
    found = at.tracer.sizes.element(at.node, 1, at.axis)
    if (at.side == "in" and at.slot > 0) or not isinstance(found, Number) or found.value != 1:
        return "'Tile' repeats its axis"
    return at.same("out" if at.side == "in" else "in", 0, at.axis)


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


def shape_of(at: Place) -> str | None:
    """Follow the size of the axis to where it is used."""
    rank = at.rank("in", 0)
    if at.side == "out" or rank is None:
        return _COMPUTED
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
            return _COMPUTED
        waiting.append((y, sum(c for c in counts if c is not None) + index))
    elif op in ("Slice", "Gather") and slot == 0:
        picked = sizes.picked(node)
        if picked is None:
            return _COMPUTED
        waiting.extend((y, i) for i, p in enumerate(picked) if p == index)
    elif (op, slot) in (("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Resize", 3)):
        rank = sizes.rank(y)
        target = sizes.count(node.inputs[slot])
        if rank is None or target is None or (op == "Resize" and "axes" in node.attrs):
            return _COMPUTED
        at.tracer.equal((at.mine, at.axis), (y, index + rank - target), _COMPUTED)
    else:
        return f"its size goes into '{op}' ({y.name})"
    return None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(POOLS | GLOBAL_POOLS, spatial),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(["Conv", "ConvTranspose"], convolution),
    **dict.fromkeys(["Gemm", "MatMul"], matrix_product),
    **dict.fromkeys(["BatchNormalization", "InstanceNormalization"], per_channel),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], layer_normalization),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "TopK"], along),
    **dict.fromkeys(["Reshape", "Flatten"], reshape),
    **dict.fromkeys(["Squeeze", "Unsqueeze"], squeeze),
    **dict.fromkeys(["Resize", "Upsample"], resize),
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Gather": gather,
    "Pad": pad,
    "Shape": shape_of,
    "Slice": slice_,
    "Split": split,
    "Tile": tile,
    "Transpose": transpose,
}
