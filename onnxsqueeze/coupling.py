"""Groups of channels that can only leave a graph together, found by following every axis that a layer makes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import channel_removal
from onnxsqueeze.channel_removal import Consequence, Reader, Survivors
from onnxsqueeze.codec import Graph
from onnxsqueeze.errors import PassError
from onnxsqueeze.tracing import Component, components
from onnxsqueeze.view import View, key_of

__all__ = ["Coupling", "Group", "Slot", "couple"]

Kind = Literal["channels", "neurons", "heads", "residual"]
Role = Literal["producer", "consumer", "carrier"]
_ROLES = ("producer", "carrier", "consumer")


@dataclass(frozen=True, eq=False)
class Slot:
    """An axis of a constant that follows a group.

    ``indices`` is (units, k): which k indices of the axis each unit owns. The rows of a producer make the channels, the
    columns of a consumer read them; a carrier (bias, BatchNormalization, depthwise weight) acts on each by itself.
    ``nodes`` are the keys of the nodes that read the constant.
    """

    constant: str
    axis: int
    indices: NDArray[np.int64]
    role: Role
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Units, such as channels or heads, each of which takes its part of all ``slots`` and ``tensors`` along.

    ``name`` is the key of the first producer, with the channels in brackets where it has several groups. ``tensors``
    are the activations that the channels run through: axis and (units, k) indices. ``residual`` channels are made by
    several layers joined by an Add, ``heads`` run through products of activations, ``neurons`` are those of Gemm and
    MatMul. ``blocked`` says why nothing may be removed.
    """

    name: str
    kind: Kind
    size: int
    slots: tuple[Slot, ...]
    tensors: Mapping[str, tuple[int, NDArray[np.int64]]]
    blocked: str = ""


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
        groups.extend(_groups(component, order))
    groups.sort(key=lambda group: order[group.name.rpartition("[")[0] or group.name])
    return Coupling(tuple(groups), lengths, readers, tuple(consequences))


def _reader(constant: gs.Constant) -> Reader:
    node = constant.outputs[0]
    slot = next(slot for slot, tensor in enumerate(node.inputs) if tensor is constant)
    return Reader(key_of(node), str(node.op), slot)


def _groups(component: Component, order: Mapping[str, int]) -> Iterator[Group]:
    """Yield the units of a component that take the same number of indices of the same axes, as groups."""
    cells: dict[int, list[tuple[int, int]]] = {}  # for each unit, classes of axes and how many indices it has there
    owned: list[dict[int, NDArray[np.int64]]] = []
    for number, root in enumerate(component.classes):
        labels = component.labels(root)
        positions = np.argsort(labels, kind="stable")
        units, starts = np.unique(labels[positions], return_index=True)
        owned.append(dict(zip(map(int, units), np.split(positions, starts[1:]), strict=True)))
        for unit, indices in owned[-1].items():
            cells.setdefault(unit, []).append((number, len(indices)))
    alike: dict[tuple[tuple[tuple[int, int], ...], str], list[int]] = {}
    for unit, found in cells.items():
        alike.setdefault((tuple(found), component.reasons.get(unit, "")), []).append(unit)
    names: dict[str, int] = {}
    for (counts, reason), members in alike.items():
        group = _group(component, order, [number for number, _ in counts], owned, members, reason)
        if group is not None:
            names[group.name] = names.get(group.name, 0) + 1
            yield group if names[group.name] == 1 else replace(group, name=f"{group.name}[{names[group.name]}]")


def _group(
    component: Component,
    order: Mapping[str, int],
    numbers: list[int],
    owned: list[dict[int, NDArray[np.int64]]],
    members: list[int],
    reason: str,
) -> Group | None:
    """Return the group of these units, None if no layer makes them."""
    classes = list(component.classes.values())
    refs = [(ref, number) for number in numbers for ref in classes[number]]
    made = [(node, ref, number) for ref, number in refs for node in component.roles.get((ref, "producer"), ())]
    if not made:
        return None
    first, _, number = min(made, key=lambda entry: order[entry[0]])
    members = sorted(members, key=lambda unit: int(owned[number][unit][0]))
    indices = {n: np.stack([owned[n][unit] for unit in members]) for n in numbers}
    slots: list[Slot] = []
    tensors: dict[str, tuple[int, NDArray[np.int64]]] = {}
    for (key, axis), n in refs:
        tensor = component.tensors[key]
        if not isinstance(tensor, gs.Constant):
            if tensor.name in tensors:
                reason = reason or f"it runs along two axes of '{tensor.name}'"
            tensors[str(tensor.name)] = axis, indices[n]
            continue
        roles = [role for role in ("producer", "consumer") if ((key, axis), role) in component.roles]
        for role in roles or ["carrier"]:
            nodes = component.roles.get(((key, axis), role)) or [key_of(node) for node in tensor.outputs]
            slots.append(Slot(str(tensor.name), axis, indices[n], role, tuple(dict.fromkeys(nodes))))  # type: ignore[arg-type]
    slots.sort(key=lambda slot: (_ROLES.index(slot.role), min(order.get(node, -1) for node in slot.nodes)))
    if len(members) == 1:
        reason = reason or "its channels can only leave all together"
    name = first if len(owned[number]) == len(members) else f"{first}[{_span(indices[number])}]"
    kind = _kind(component, {ref for ref, _ in refs}, {node for node, _, _ in made})
    return Group(name, kind, len(members), tuple(slots), tensors, reason)


def _span(indices: NDArray[np.int64]) -> str:
    """Return indices as a user would slice them."""
    first, last = int(indices.min()), int(indices.max())
    return f"{first}:{last + 1}" if last - first + 1 == indices.size else f"{first}…{last + 1}"


def _kind(component: Component, refs: set[tuple[int, int]], producers: set[str]) -> Kind:
    """Return what a group of channels is to a user."""
    if refs & component.products:
        return "heads"
    if len(producers) > 1 and _joined(component, {key for key, _ in refs}, producers):
        return "residual"
    return "neurons" if all(component.ops[key] in ("Gemm", "MatMul") for key in producers) else "channels"


def _joined(component: Component, inside: set[int], producers: set[str]) -> bool:
    """Return whether an Add joins what different layers make, each side with one that the other has not."""
    nodes = {id(n): n for key in inside for n in component.tensors[key].inputs}
    sources: dict[int, frozenset[str]] = {}
    for node in sorted(nodes.values(), key=lambda n: component.positions[id(n)]):
        parts = [sources[id(t)] for t in node.inputs if id(t) in sources]
        if node.op in ("Add", "Sum") and any(a - b and b - a for a in parts for b in parts):
            return True
        own = frozenset([key_of(node)]) if key_of(node) in producers else frozenset()
        for tensor in node.outputs:
            if id(tensor) in inside:
                sources[id(tensor)] = own or frozenset().union(*parts)
    return False
