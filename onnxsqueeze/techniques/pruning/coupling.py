"""Groups of channels that can only leave a graph together, found by following every axis that a layer makes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import PassError
from onnxsqueeze.graph.constants import source
from onnxsqueeze.graph.operators import operator
from onnxsqueeze.graph.shapes.known import Sizes
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.techniques.pruning import removal
from onnxsqueeze.techniques.pruning.component import Component, Ref
from onnxsqueeze.techniques.pruning.groups import groups_of
from onnxsqueeze.techniques.pruning.removal import Survivors
from onnxsqueeze.techniques.pruning.units import Anchor, Consequence, Group, Kind

__all__ = ["Coupling", "couple", "outside"]

UNCOUPLED = "all of its channels are the model's own inputs or outputs, or not known"
ATTEMPTS = 4
"""How many factors of a reshaped axis are tried, from the outermost on.

The first that frees most channels is taken, or the finest units if these are cut out of the same weights.
"""


@dataclass(frozen=True, eq=False)
class Coupling:
    """The groups of a graph, in the order of their first producers, and what their removal entails."""

    groups: tuple[Group, ...]
    lengths: Mapping[tuple[str, int], int]
    """How many indices an axis of a constant or activation had at first."""
    readers: Mapping[str, Anchor]
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
        removal.remove(state, graph, group, np.array(sorted(set(units)), np.int64), self.consequences)

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
    """Find the groups of all channels that a Conv, Gemm, MatMul or a table behind a Gather makes."""
    order = {key_of(node): i for i, node in enumerate(view.nodes)}
    groups = list(_in_bodies(view))
    lengths: dict[tuple[str, int], int] = {}
    readers: dict[str, Anchor] = {}
    consequences: dict[Consequence, None] = {}
    for component in _components(view):
        lengths.update({(str(component.tensors[key].name), i): size for (key, i), size in component.lengths.items()})
        readers.update((str(tensor.name), _reader(tensor)) for tensor in component.constants())
        consequences.update(component.consequences)
        groups.extend(groups_of(component, order))
    groups.sort(key=lambda group: min((order[key] for key in group.producers), default=order.get(group.name, 0)))
    return Coupling(tuple(groups), lengths, readers, tuple(consequences))


def _components(view: View) -> Iterator[Component]:
    """Yield the axes that hang together with one that a layer makes, each once."""
    sizes = Sizes(view)
    owned: set[Ref] = set()
    for tensor, axis in (made for node in view.nodes if not view.in_body(node) for made in _made(node)):
        if (id(tensor), axis) in owned:
            continue
        tried: list[Component] = []
        for choice in range(ATTEMPTS):
            tried.append(Component(sizes, owned, choice))
            tried[-1].explore(tensor, axis)
            if tried[-1].choices <= choice + 1:
                break
        best = tried[0]
        for other in tried[1:]:
            finer = other.free == best.free and other.weights == best.weights and other.count > best.count
            best = other if finer or other.free > best.free else best
        owned.update(best.lengths)
        yield best


def _made(node: gs.Node) -> Iterator[tuple[gs.Tensor, int]]:
    """Yield the axis of a layer's weight whose indices are the channels that it makes."""
    for slot, axis in {
        "Conv": [(1, 0)],
        "ConvTranspose": [(1, 0 if int(node.attrs.get("group", 1)) > 1 else 1)],
        "Gather": [(0, 1)],
        "Gemm": [(1, 0 if node.attrs.get("transB", 0) else 1), (0, 1 if node.attrs.get("transA", 0) else 0)],
        "MatMul": [(1, -1), (0, -2)],
    }.get(operator(node), ()):
        found = source(node.inputs[slot])
        if found is not None and len(found[1]) > 1 and np.dtype(found[0].dtype).kind == "f":
            yield found[0], found[1][axis]
            return


def _in_bodies(view: View) -> Iterator[Group]:
    """Yield the layers in bodies of other nodes as groups that cannot be pruned."""
    owners = {id(body): str(node.op) for node in view.nodes for body in subgraphs(node)}
    for node in view.nodes:
        for tensor, axis in _made(node) if view.in_body(node) and node.op != "Gather" else ():
            size = view.shape(tensor)
            kind: Kind = "channels" if node.op.startswith("Conv") else "neurons"
            reason = f"it lies in the body of '{owners[id(view.scope(node))]}'"
            if size is not None and isinstance(count := size[axis], int):
                yield Group(key_of(node), kind, count, (), {}, reason)


def _reader(constant: gs.Constant) -> Anchor:
    node = constant.outputs[0]
    slot = next(slot for slot, tensor in enumerate(node.inputs) if tensor is constant)
    return Anchor(key_of(node), str(node.op), slot)


def outside(view: View, coupling: Coupling) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield key and name of every node with a weight that is in no group, and why nothing leaves it."""
    inside = {key for group in coupling.groups for slot in group.slots for key in slot.nodes}
    inside |= {key for group in coupling.groups for key in (group.name, *group.producers)}
    for each in weighted(view):
        key = key_of(each.node)
        if key and key not in inside:
            layer = each.node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")
            yield (key, str(each.node.name)), UNCOUPLED if layer and not each.apart else each.reason
