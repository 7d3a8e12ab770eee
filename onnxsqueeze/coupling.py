"""Groups of channels that can only leave a graph together, found by following every axis that a layer makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import channel_removal
from onnxsqueeze.channel_removal import Consequence, Reader, Survivors
from onnxsqueeze.codec import Graph
from onnxsqueeze.errors import PassError
from onnxsqueeze.groups import Group, Slot, groups_of
from onnxsqueeze.tracing import components
from onnxsqueeze.view import View, key_of

__all__ = ["Coupling", "Group", "Slot", "couple"]


@dataclass(frozen=True, eq=False)
class Coupling:
    """The groups of a graph, in the order of their first producers, and what their removal entails."""

    groups: tuple[Group, ...]
    lengths: Mapping[tuple[str, int], int]
    """How many indices an axis of a constant or activation had at first."""
    readers: Mapping[str, Reader]
    """For each constant with an axis that follows a group a node that reads it."""
    consequences: tuple[Consequence, ...] = ()
    """What else in the graph says how long an axis is, or where on it something stands."""
    _states: WeakKeyDictionary[Graph, Survivors] = field(default_factory=WeakKeyDictionary, repr=False)

    def remove(self, graph: Graph, group: Group, units: Collection[int]) -> None:
        """Remove units of a group from the graph in place: rows, columns, and every size that counts them.

        ``units`` are counted as in ``group``, whatever was removed before. Raises PassError for a blocked group, a
        unit that is not there, or if none would be left.
        """
        if not units:
            return
        if group.blocked:
            raise PassError(f"channels of '{group.name}' cannot be removed: {group.blocked}")
        if min(units) < 0 or max(units) >= group.size:
            raise PassError(f"'{group.name}' has {group.size} units, not one with the number {max(units)}")
        state = self._states.setdefault(graph, Survivors(self.lengths, self.readers))
        channel_removal.remove(state, graph, group, np.array(sorted(set(units)), np.int64), self.consequences)

    def survivors(self, graph: Graph, constant_name: str, axis: int) -> NDArray[np.int64]:
        """Return the original indices along an axis of a constant that are still there."""
        state = self._states.setdefault(graph, Survivors(self.lengths, self.readers))
        if (constant_name, axis) in self.lengths:
            return state.of(constant_name, axis)
        return np.arange(state.tensor(graph, constant_name).shape[axis], dtype=np.int64)

    def kept(self, graph: Graph) -> Mapping[str, tuple[int, NDArray[np.int64]]]:
        """Return for every activation that has lost channels the axis and the original indices still there."""
        state = self._states.get(graph)
        return {} if state is None else state.activations()


def couple(view: View) -> Coupling:
    """Find the groups of all channels that a Conv, Gemm, MatMul or a table behind a Gather makes in the main graph."""
    order = {key_of(node): i for i, node in enumerate(view.nodes)}
    groups: list[Group] = []
    lengths: dict[tuple[str, int], int] = {}
    readers: dict[str, Reader] = {}
    consequences: dict[Consequence, None] = {}
    for component in components(view):
        lengths.update(
            {(str(component.tensors[key].name), axis): size for (key, axis), size in component.lengths.items()}
        )
        readers.update((str(tensor.name), _reader(tensor)) for tensor in component.constants())
        consequences.update(component.consequences)
        groups.extend(groups_of(component, order))
    groups.sort(key=lambda group: order[group.name.rpartition("[")[0] or group.name])
    return Coupling(tuple(groups), lengths, readers, tuple(consequences))


def _reader(constant: gs.Constant) -> Reader:
    node = constant.outputs[0]
    slot = next(slot for slot, tensor in enumerate(node.inputs) if tensor is constant)
    return Reader(key_of(node), str(node.op), slot)
