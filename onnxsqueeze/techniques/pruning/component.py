"""Following an axis through a graph: all axes that lose indices with it, and which of their indices leave together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.constants import source
from onnxsqueeze.graph.shapes.known import Sizes
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import subgraphs
from onnxsqueeze.techniques.pruning.axes.place import Indices, Place
from onnxsqueeze.techniques.pruning.axes.rules import rule_of
from onnxsqueeze.techniques.pruning.units import Consequence

__all__ = ["Component", "Ref"]

Ref = tuple[int, int]
"""An axis of a tensor: its identity and the position."""


class Component:
    """The axes that hang together with one, and what removing indices of them entails; the ``Tracer`` of the rules."""

    def __init__(self, sizes: Sizes, foreign: set[Ref], choice: int) -> None:
        self.sizes = sizes
        self.view = sizes.view
        self.opset = self.view.opset
        self.positions = sizes.positions
        self.foreign = foreign
        self.choice = choice
        self.choices = 1
        self.partners: dict[tuple[int, int], tuple[int, int]] = {}
        self.tensors: dict[int, gs.Tensor] = {}
        self.lengths: dict[Ref, int] = {}
        self.consequences: dict[Consequence, None] = {}
        self.roles: dict[tuple[Ref, str], list[str]] = {}
        self.ops: dict[str, str] = {}
        """The operators of the layers by key."""
        self.products: set[Ref] = set()
        """Axes that count the matrices of a batched product of activations."""
        self._waiting: list[Ref] = []
        self._parents: dict[Ref, Ref] = {}
        self._ties: list[tuple[Ref, Indices, Ref, Indices]] = []
        self._blocks: list[tuple[Ref, Indices | None, str]] = []
        self._equals: list[tuple[Ref, Ref, str]] = []
        self._inputs = {id(tensor) for tensor in self.view.graph.inputs}

    # -- what the rules ask and tell -----------------------------------------------------------------------------------

    def length(self, tensor: gs.Tensor, axis: int) -> int | None:
        """Return the number of indices of an axis, None if it is not known."""
        known = self.lengths.get((id(tensor), axis))
        if known is not None:
            return known
        shape = self.sizes.shape(tensor)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        return size if isinstance(size, int) else None

    def tie(
        self, mine: tuple[gs.Tensor, int, Indices | None], other: tuple[gs.Tensor, int, Indices | None], length: int
    ) -> None:
        """Take down that indices leave together, pairwise; None are all of them, of which there are ``length``."""
        (a, i, here), (b, j, there) = mine, other
        self._reach(b, j, length)
        one, two = (id(a), i), (id(b), j)
        if here is None or there is None:
            self._parents[self._root(two)] = self._root(one)
        else:
            self._ties.append((one, here.astype(np.int64), two, there.astype(np.int64)))

    def role(self, tensor: gs.Tensor, axis: int, role: str, node: gs.Node) -> None:
        """Take down what a weight's axis is for."""
        found = source(tensor)
        if found is not None:
            self.ops[key_of(node)] = str(node.op)
            nodes = self.roles.setdefault(((id(found[0]), found[1][axis]), role), [])
            if key_of(node) not in nodes:
                nodes.append(key_of(node))

    def constant(self, tensor: gs.Tensor) -> bool:
        """Return whether the tensor is a constant."""
        return source(tensor) is not None

    def options(self, count: int) -> None:
        """Take down that a reshaped axis has several factors to choose from."""
        self.choices = max(self.choices, count)

    def boundary(
        self, node: gs.Node, path: tuple[int, ...] | str, index: int, tensor: gs.Tensor, axis: int, value: int
    ) -> None:
        """Take down a number in the model that must become the count of indices under ``value`` that are left."""
        self._entail(Consequence("number", key_of(node), str(tensor.name), axis, path, index, (value,)))

    def picks(self, node: gs.Node, tensor: gs.Tensor, axis: int) -> None:
        """Take down that the constant indices of a Gather are positions along an axis of its data."""
        values = tuple(self.sizes.integers(node, 1) or ())
        self._entail(Consequence("indices", key_of(node), str(tensor.name), axis, (1,), 0, values))

    def groups(self, node: gs.Node, tensor: gs.Tensor, axis: int, each: int) -> None:
        """Take down that the attribute ``group`` is the length of an axis over ``each``."""
        self._entail(Consequence("group", key_of(node), str(tensor.name), axis, "group", 0, (each,)))

    def split(self, node: gs.Node, axis: int, sizes: Sequence[int]) -> None:
        """Take down that a Split cuts its input into parts of these sizes."""
        where: tuple[int, ...] | str = (1,) if self.opset >= 13 else "split"
        self._entail(Consequence("sizes", key_of(node), str(node.inputs[0].name), axis, where, 0, tuple(sizes)))

    def _entail(self, consequence: Consequence) -> None:
        self.consequences[consequence] = None

    def equal(self, one: tuple[gs.Tensor, int], other: tuple[gs.Tensor, int], reason: str) -> None:
        """Take down that two axes must lose the same indices, or else neither may lose any."""
        self._equals.append(((id(one[0]), one[1]), (id(other[0]), other[1]), reason))

    def block(self, tensor: gs.Tensor, axis: int, indices: Indices | None, reason: str) -> None:
        """Take down that some indices, or all, must stay."""
        self._blocks.append(((id(tensor), axis), indices, reason))

    def heads(self, tensor: gs.Tensor, axis: int) -> None:
        """Take down that the axis counts independent products of matrices."""
        self.products.add((id(tensor), axis))

    # -- the walk ------------------------------------------------------------------------------------------------------

    def explore(self, tensor: gs.Tensor, axis: int) -> None:
        """Follow an axis wherever its indices go."""
        length = self.length(tensor, axis)
        if length is None:
            return
        self._reach(tensor, axis, length)
        while self._waiting:
            self._visit(*self._waiting.pop())

    def _reach(self, tensor: gs.Tensor, axis: int, length: int) -> None:
        ref = (id(tensor), axis)
        if ref not in self.lengths:
            self.lengths[ref] = length
            self.tensors[id(tensor)] = tensor
            self._waiting.append(ref)
            if ref in self.foreign:
                self.block(tensor, axis, None, "its channels hang together in another way, too")

    def _visit(self, key: int, axis: int) -> None:
        tensor, ref = self.tensors[key], (key, axis)
        if isinstance(tensor, gs.Constant):
            if getattr(tensor, "overridable", False):
                self.block(tensor, axis, None, f"the caller may override '{tensor.name}'")
        elif key in self._inputs:
            self.block(tensor, axis, None, f"it comes from the input '{tensor.name}'")
        elif not tensor.inputs:
            self.block(tensor, axis, None, f"nothing is known of where '{tensor.name}' comes from")
        if self.view.is_output(tensor):
            self.block(tensor, axis, None, f"it reaches the output '{tensor.name}'")
        for node in tensor.inputs:
            self._apply(node, "out", next(i for i, t in enumerate(node.outputs) if t is tensor), ref)
        for node in {id(n): n for n in tensor.outputs}.values():
            for slot, read in enumerate(node.inputs):
                if read is tensor:
                    self._apply(node, "in", slot, ref)

    def _apply(self, node: gs.Node, side: str, slot: int, ref: Ref) -> None:
        tensor, axis = self.tensors[ref[0]], ref[1]
        if self.view.in_body(node):
            reason: str | None = f"the body of '{self._owners.get(id(self.view.scope(node)), '?')}' reads it"
        else:
            reason = rule_of(node)(Place(self, node, side, slot, axis, self.lengths[ref]))  # type: ignore[arg-type]
        if reason:
            self.block(tensor, axis, None, reason)

    @cached_property
    def _owners(self) -> Mapping[int, str]:
        return {id(body): str(node.op) for node in self.view.nodes for body in subgraphs(node)}

    def constants(self) -> Iterator[gs.Constant]:
        """Yield the constants with an axis among those followed."""
        return (tensor for tensor in self.tensors.values() if isinstance(tensor, gs.Constant))

    # -- what leaves together ------------------------------------------------------------------------------------------

    def _root(self, ref: Ref) -> Ref:
        while (parent := self._parents.get(ref, ref)) != ref:
            self._parents[ref] = ref = self._parents.get(parent, parent)
        return ref

    @cached_property
    def classes(self) -> dict[Ref, list[Ref]]:
        """The axes that are indexed alike, by one of them."""
        found: dict[Ref, list[Ref]] = {}
        for ref in self.lengths:
            found.setdefault(self._root(ref), []).append(ref)
        return found

    @cached_property
    def _labelled(self) -> dict[Ref, Indices]:
        starts: dict[Ref, int] = {}
        total = 0
        for root in self.classes:
            starts[root] = total
            total += self.lengths[root]
        a = [starts[self._root(one)] + here for one, here, _, _ in self._ties]
        b = [starts[self._root(two)] + there for _, _, two, there in self._ties]
        labels = _connected(
            total, np.concatenate([*a, [0]]).astype(np.int64), np.concatenate([*b, [0]]).astype(np.int64)
        )
        return {root: labels[start : start + self.lengths[root]] for root, start in starts.items()}

    @cached_property
    def units(self) -> int:
        """One more than the greatest number of a unit."""
        return sum(self.lengths[root] for root in self.classes)

    def labels(self, ref: Ref) -> Indices:
        """Return for each index of an axis the number of the unit that it leaves with."""
        return self._labelled[self._root(ref)]

    @cached_property
    def reasons(self) -> dict[int, str]:
        """Why units must stay, by their number."""
        found: dict[int, str] = {}
        for ref, indices, reason in self._blocks:
            labels = self.labels(ref)
            for label in np.unique(labels if indices is None else labels[indices]):
                found.setdefault(int(label), reason)
        for one, other, reason in self._equals:
            both = [self.labels(ref) for ref in (one, other) if ref in self.lengths]
            if len(both) == 2 and np.array_equal(both[0], both[1]):
                continue
            for label in np.unique(np.concatenate(both)) if both else ():
                found.setdefault(int(label), reason)
        return found

    @property
    def weights(self) -> set[Ref]:
        """The axes of constants."""
        return {ref for ref in self.lengths if isinstance(self.tensors[ref[0]], gs.Constant)}

    @cached_property
    def count(self) -> int:
        """The number of units with channels that may be removed."""
        return len({int(label) for labels in self._producers for label in labels} - self.reasons.keys())

    @cached_property
    def _producers(self) -> list[Indices]:
        return [self.labels(ref) for ref, role in self.roles if role == "producer" and ref in self.lengths]

    @cached_property
    def made(self) -> int:
        """The number of channels that layers make."""
        return sum(map(len, self._producers))

    @cached_property
    def free(self) -> int:
        """The number of these that may be removed."""
        return sum(int(label) not in self.reasons for labels in self._producers for label in labels)


def _connected(count: int, a: Indices, b: Indices) -> Indices:
    """Return the least vertex that each vertex hangs together with over the edges (a, b)."""
    labels = np.arange(count, dtype=np.int64)
    while True:
        one, two = labels[a], labels[b]
        if np.array_equal(one, two):
            return labels
        least = np.minimum(one, two)
        np.minimum.at(labels, one, least)
        np.minimum.at(labels, two, least)
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter
