"""Taking channels out of a graph, hiding them in it, and the proof that both come to the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import PassError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_value
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.techniques.pruning.units import Anchor, Consequence, Indices

if TYPE_CHECKING:
    from onnxsqueeze.techniques.pruning.units import Group, Slot

__all__ = ["Survivors", "remove"]


class Survivors:
    """The original indices that are left along the axes of a graph's constants and activations."""

    def __init__(self, lengths: Mapping[tuple[str, int], int], readers: Mapping[str, Anchor]) -> None:
        self.lengths = lengths
        self.readers = readers
        self.left: dict[tuple[str, int], Indices] = {}
        self._tensors: dict[str, gs.Tensor] = {}

    def of(self, name: str, axis: int) -> Indices:
        """Return the indices of an axis that belongs to a group."""
        left = self.left.get((name, axis))
        return np.arange(self.lengths[name, axis], dtype=np.int64) if left is None else left

    def tensor(self, graph: Graph, name: str) -> gs.Tensor:
        """Return a tensor of the main graph by name, or the constant that is read now where one of that name was."""
        found = self._tensors.get(name)
        if found is None or found.name != name or not (found.inputs or found.outputs):
            self._tensors = {t.name: t for node in graph.nodes for t in (*node.inputs, *node.outputs)}
            found = self._tensors.get(name)
        if found is None and name in self.readers:
            reader = self.readers[name]
            node = edit.find(graph, reader.key)[0]
            if node.op != reader.op:  # something was added behind it, which makes the output now
                before = [source for tensor in node.inputs for source in tensor.inputs if source.op == reader.op]
                node = before[0] if before else node
            found = node.inputs[reader.slot] if reader.slot < len(node.inputs) else None
            if not isinstance(found, gs.Constant):
                found = None
        if found is None:
            raise PassError(f"nothing in the graph is '{name}' any more, of which channels are to be removed")
        return found

    def activations(self) -> dict[str, tuple[int, Indices]]:
        """Return what is left of all activations that have lost indices."""
        return {name: (axis, left) for (name, axis), left in self.left.items() if name not in self.readers}


def remove(state: Survivors, graph: Graph, group: Group, units: Indices, consequences: Sequence[Consequence]) -> None:
    """Remove units of a group in place and update what the graph says about them elsewhere."""
    changed: dict[tuple[str, int], Indices] = {}
    places = [(slot.constant, slot.axis, slot.indices) for slot in group.slots]
    places += [(name, axis, indices) for name, (axis, indices) in group.tensors.items()]
    for name, axis, indices in places:
        old = changed.get((name, axis), state.of(name, axis))
        left = old[~np.isin(old, indices[units])]
        if not len(left):
            raise PassError(f"'{group.name}' must keep at least one of its {group.size} units")
        changed[name, axis] = left
    tensors = {name: state.tensor(graph, name) for name, _ in changed}
    for constant, slot in _added(graph, group, tensors):
        _take(constant, -1, state.of(slot.constant, slot.axis), changed[slot.constant, slot.axis])
    for (name, axis), left in changed.items():
        tensor = tensors[name]
        if isinstance(tensor, gs.Constant):
            _take(tensor, axis, state.of(name, axis), left)
        elif tensor.shape is not None and axis < len(tensor.shape) and isinstance(tensor.shape[axis], int):
            tensor.shape = [len(left) if i == axis else size for i, size in enumerate(tensor.shape)]
        state.left[name, axis] = left
    for consequence in consequences:
        if (consequence.tensor, consequence.axis) in changed:
            _update(state, graph, consequence)


def _take(constant: gs.Constant, axis: int, old: Indices, left: Indices) -> None:
    """Keep some of the indices along an axis of a constant."""
    if constant.shape[axis] != len(old):
        raise PassError(f"'{constant.name}' has {constant.shape[axis]} indices along axis {axis}, not {len(old)}")
    constant.values = np.take(peek(constant), np.searchsorted(old, left), axis)


def _added(graph: Graph, group: Group, known: Mapping[str, gs.Tensor]) -> Iterator[tuple[gs.Constant, Slot]]:
    """Yield the biases that the layers of a group have got since it was found."""
    seen = {id(tensor) for tensor in known.values()}
    for slot in group.slots:
        for key in slot.nodes if slot.role == "producer" else ():
            node = edit.find(graph, key)[0]
            for tensor in node.inputs if node.op == "Add" else node.inputs[2:3]:
                if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor, slot


def _update(state: Survivors, graph: Graph, consequence: Consequence) -> None:
    node, scope = edit.find(graph, consequence.node)
    left = state.of(consequence.tensor, consequence.axis)
    where, values = consequence.where, consequence.values
    if consequence.kind == "group":
        node.attrs["group"] = len(left) // values[0]
    elif consequence.kind == "number":
        number = int(np.searchsorted(left, values[0]))
        if isinstance(where, str):
            node.attrs[where] = [number if i == consequence.index else v for i, v in enumerate(node.attrs[where])]
        else:
            _write(graph, scope, node, where, consequence.index, number)
    elif consequence.kind == "sizes":
        sizes = np.diff(np.searchsorted(left, np.cumsum([0, *values])))
        if isinstance(where, str):
            node.attrs[where] = sizes.tolist()
        else:
            node.attrs.pop("num_outputs", None)
            _put(graph, node, 1, sizes.astype(np.int64))
    else:
        old = np.array(values, np.int64) % state.lengths[consequence.tensor, consequence.axis]
        picked = node.inputs[1]
        rank = len(np.shape(constant_value(picked)))  # type: ignore[arg-type]
        if rank:
            old = old[state.of(node.outputs[0].name, consequence.axis)]
        dtype = np.asarray(constant_value(picked)).dtype
        _put(graph, node, 1, np.searchsorted(left, old).astype(dtype).reshape((-1,) if rank else ()))


def _write(graph: Graph, scope: Graph, node: gs.Node, path: tuple[int, ...], index: int, number: int) -> None:
    """Set an element of the constant behind a path of inputs, without changing what other nodes read."""
    for slot in path[:-1]:
        tensor = node.inputs[slot]
        source = tensor.inputs[0]
        if len(tensor.outputs) > 1 or any(tensor is output for output in scope.outputs):
            made = edit.insert(
                graph, scope, source.op, list(source.inputs), str(tensor.name), source.attrs, before=node,
                domain=source.domain,
            )  # fmt: skip
            node.inputs[slot] = made
            source = made.inputs[0]
        node = source
    values = np.array(constant_value(node.inputs[path[-1]]))
    if values.flat[index] != number:
        values.flat[index] = number
        _put(graph, node, path[-1], values)


def _put(graph: Graph, node: gs.Node, slot: int, values: NDArray[Any]) -> None:
    """Let one input be a constant of these values."""
    while len(node.inputs) <= slot:
        node.inputs.append(gs.Variable.empty())
    old = node.inputs[slot]
    if isinstance(old, gs.Constant) and len(old.outputs) == 1:
        old.values = values
    else:
        node.inputs[slot] = edit.constant(graph, old.name or f"{node.outputs[0].name}_sizes", values)
