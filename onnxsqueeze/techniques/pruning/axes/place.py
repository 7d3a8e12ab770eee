"""Axes of tensors as the rules of operators see them: which indices of one follow those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.shapes.known import Dimension, Sizes

__all__ = ["COMPUTED", "Indices", "Place", "Rule", "Side", "Tracer", "broadcast", "first"]

Indices = NDArray[np.int64]
Side = Literal["in", "out"]

COMPUTED = "its size goes into a computation that cannot be followed"


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

    def split(self, node: gs.Node, axis: int, sizes: Sequence[int]) -> None:
        """Take down that a Split cuts its input into parts of these sizes."""

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
        if tensor is None:
            return
        outside = mine.max(initial=-1) >= self.length or other.max(initial=-1) >= length
        if self.tracer.length(tensor, axis) not in (None, length) or outside:
            self.tracer.block(self.mine, self.axis, None, f"the sizes at '{self.node.op}' contradict each other")
            return
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
            self.tracer.equal((found.tensor, found.axis), (tensor, axis), COMPUTED)
            return None
        if found is None:
            return COMPUTED
        if found.value == self.tracer.length(tensor, axis):
            self.tracer.boundary(self.node, found.path, found.index, tensor, axis, found.value)
        elif found.value != 1:
            return f"the sizes at '{self.node.op}' contradict each other"
        return None


Rule = Callable[[Place], "str | None"]
"""Ties the indices of the axis to those that can only be removed with them, or says in words why that is unknown."""


def broadcast(at: Place, inputs: Sequence[int], outputs: Sequence[int]) -> str | None:
    """Tie axes of these inputs and outputs that are equally far from the last one, unless they are broadcast."""
    sides: tuple[tuple[Side, Sequence[int]], ...] = (("in", inputs), ("out", outputs))
    ports = [(side, slot) for side, slots in sides for slot in slots if at.port(side, slot) is not None]
    ranks: dict[tuple[Side, int], int] = {}
    for port in ports:
        rank = at.rank(*port)
        if rank is None:
            return f"the number of axes at '{at.node.op}' is unknown"
        ranks[port] = rank
    back = ranks[at.side, at.slot] - at.axis
    for (side, slot), rank in ranks.items():
        if rank < back or (side, slot) == (at.side, at.slot):
            continue
        size = at.size(side, slot, rank - back)
        if size is None and side == "out" and at.length > 1:
            size = at.length
        if size is None:
            return f"the size of its axis at '{at.node.op}' is unknown"
        if size == at.length:
            at.same(side, slot, rank - back)
        elif at.length == 1:
            return f"'{at.node.op}' spreads its only channel"
        elif size != 1:
            return f"the sizes at '{at.node.op}' contradict each other"
    return None


def first(reasons: Iterable[str | None]) -> str | None:
    """Return the first reason, after all have been computed."""
    return next((reason for reason in list(reasons) if reason), None)
