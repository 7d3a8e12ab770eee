"""The proof that a graph without some units answers as one in which they are hidden."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.pruning.removal import Survivors

if TYPE_CHECKING:
    from onnxsqueeze.techniques.pruning.units import Group

__all__ = ["disagreement", "masked"]

_SATURATING = ("HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh")


def masked(graph: Graph, removals: Mapping[Group, Collection[int]]) -> Graph:
    """Return a copy in which nothing reads these units: the columns of all consumers are zero for them."""
    copy = edit.duplicate(graph)
    state = Survivors({}, {})
    for group, units in removals.items():
        for slot in group.slots:
            if slot.role == "consumer":
                constant = state.tensor(copy, slot.constant)
                values = np.array(peek(constant))
                values[(slice(None),) * slot.axis + (slot.indices[sorted(units)].ravel(),)] = 0
                constant.values = values
    return copy


def disagreement(
    original: Graph,
    remove: Callable[[Graph, Group, Collection[int]], None],
    removals: Mapping[Group, Collection[int]],
    feeds: Sequence[dict[str, NDArray[np.generic]]],
) -> float:
    """Return ``max|a − b| / max|a|`` of the worst output and feed between the masked graph and that without the units.

    ``remove`` takes units of a group out of a graph, as ``Coupling.remove`` does. Both graphs run without
    optimizations. Of an output that a Sigmoid or Softmax makes, what goes into that is compared, because it would hide
    differences where it saturates. The result is infinite if the smaller graph does not run, or
    its outputs are of other shapes or not finite where the others are.
    """
    smaller = edit.duplicate(original)
    for group, units in removals.items():
        remove(smaller, group, units)
    hidden = masked(original, removals)
    for graph in (smaller, hidden):
        graph.outputs = [_unsaturated(tensor) for tensor in graph.outputs]
        edit.tidy(graph)
    expected = Session(hidden, optimize="none")
    worst = 0.0
    try:
        found = Session(smaller, optimize="none")
        for feed in feeds:
            one, other = expected.run(feed), found.run(feed)
            worst = max([worst, *(_distance(value, other[name]) for name, value in one.items())])
    except (ModelError, FeedError):
        return float("inf")
    return worst


def _unsaturated(tensor: gs.Tensor) -> gs.Tensor:
    while tensor.inputs and tensor.inputs[0].op in _SATURATING and tensor.inputs[0].inputs[0].inputs:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _distance(one: object, other: object) -> float:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max([_distance(a, b) for a, b in zip(one, other, strict=True)], default=0.0)
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return 0.0 if type(one) is type(other) and one == other else float("inf")
    if one.shape != other.shape:
        return float("inf")
    if one.dtype.kind != "f":
        return float(not np.array_equal(one, other))
    a, b = one.astype(np.float64), other.astype(np.float64)
    ordinary = np.isfinite(a)
    if not np.array_equal(a[~ordinary], b[~ordinary], equal_nan=True) or not np.isfinite(b[ordinary]).all():
        return float("inf")
    a, b = a[ordinary], b[ordinary]
    scale = float(np.abs(a).max(initial=0.0))
    gap = float(np.abs(a - b).max(initial=0.0))
    return gap / scale if scale else float(gap > 0)
