"""Shapes of a graph as far as they can be known, and where the numbers of a computed shape come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.operators import operator
from onnxsqueeze.graph.shapes.inference import infer_shape
from onnxsqueeze.graph.shapes.products import Dim, Run, over, product, range_of, runs_of, size_of
from onnxsqueeze.graph.view import View

__all__ = ["Dimension", "Literal", "Sizes"]

LONGEST = 64
"""Elements of a constant that is still looked at as a shape."""


@dataclass(frozen=True)
class Literal:
    """A number of a constant: the last of ``path``, input slots to follow backwards, reads it at flat ``index``."""

    value: int
    path: tuple[int, ...]
    index: int


@dataclass(frozen=True)
class Dimension:
    """The size of an axis, as Shape gives it."""

    tensor: gs.Tensor
    axis: int


class Sizes:
    """What is known of the shapes of a graph: that of ONNX's inference, and more where it stops.

    It goes on through operators of other domains and through shapes that are computed from shapes.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.positions = {id(node): i for i, node in enumerate(view.nodes)}
        self._shapes: dict[int, tuple[Dim, ...] | None] = {}
        for node in view.nodes:
            for tensor in (*node.inputs, *node.outputs):
                if id(tensor) not in self._shapes:
                    self._put(node, tensor)

    def _put(self, node: gs.Node, tensor: gs.Tensor) -> None:
        found: Sequence[Dim | None] | None = self.view.shape(tensor)
        if not isinstance(tensor, gs.Constant) and any(tensor is t for t in node.outputs):
            complete = found is not None and all(isinstance(size, int) for size in found)
            own = None if complete or self.view.in_body(node) else infer_shape(self, node)
            if found is None:
                found = own
            elif own is not None and len(own) == len(found):
                found = [a if isinstance(a, int) or b is None else b for a, b in zip(found, own, strict=True)]
        self._shapes[id(tensor)] = (
            None if found is None else tuple(f"?{tensor.name}:{i}" if d is None else d for i, d in enumerate(found))
        )

    def shape(self, tensor: gs.Tensor) -> tuple[Dim, ...] | None:
        """Return sizes and symbols, None if the rank is unknown."""
        return self._shapes.get(id(tensor))

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Return the number of axes."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def integers(self, node: gs.Node, slot: int, name: str = "") -> list[int] | None:
        """Return whole numbers that are an attribute in old operator sets and a constant input in new ones."""
        if name in node.attrs:
            value = node.attrs[name]
            return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
        if slot >= len(node.inputs) or not node.inputs[slot].name:
            return None
        values = self.view.value(node.inputs[slot])
        return None if values is None or values.dtype.kind not in "iu" else [int(v) for v in values.reshape(-1)]

    # -- where numbers come from ---------------------------------------------------------------------------------------

    def element(self, node: gs.Node, slot: int, index: int) -> Literal | Dimension | None:
        """Return where element ``index`` of an input of whole numbers comes from, None if it is computed otherwise."""
        if slot >= len(node.inputs):
            return None
        tensor = node.inputs[slot]
        path: tuple[int, ...] = (slot,)
        while True:
            values = self._constant(tensor)
            if values is not None:
                return Literal(values[index], path, index) if 0 <= index < len(values) else None
            source = tensor.inputs[0] if tensor.inputs else None
            if source is None or self.view.in_body(source):
                return None
            step = self._back(source, index)
            if step is None or isinstance(step, Dimension):
                return step
            next_slot, index = step
            tensor, path = source.inputs[next_slot], (*path, next_slot)

    def _constant(self, tensor: gs.Tensor) -> list[int] | None:
        if isinstance(tensor, gs.Constant) and (
            prod(tensor.shape) > LONGEST or np.dtype(tensor.dtype).kind not in "iu"
        ):
            return None
        values = self.view.value(tensor)
        if values is None or values.size > LONGEST or values.dtype.kind not in "iu":
            return None
        return [int(v) for v in values.reshape(-1)]

    def _back(self, source: gs.Node, index: int) -> tuple[int, int] | Dimension | None:
        """Return the input and its element that an element of a node's output is a copy of, or the size that it is."""
        op = operator(source)
        if op == "Shape":
            rank = self.rank(source.inputs[0])
            if rank is None:
                return None
            axes = range(rank)[range_of(source)]
            return Dimension(source.inputs[0], axes[index]) if index < len(axes) else None
        if op in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
            return 0, index
        if op == "Concat":
            for slot, part in enumerate(source.inputs):
                count = self.count(part)
                if count is None:
                    return None
                if index < count:
                    return slot, index
                index -= count
        picked = self.picked(source)
        return None if picked is None or index >= len(picked) else (0, picked[index])

    def picked(self, node: gs.Node) -> list[int] | None:
        """Return which elements of a vector of known length a Slice or Gather takes."""
        op, count = operator(node), self.count(node.inputs[0]) if node.inputs else None
        if count is None or self.rank(node.inputs[0]) != 1:
            return None
        if op == "Gather":
            indices = self.integers(node, 1)
            return None if indices is None else [i % count for i in indices if -count <= i < count]
        if op == "Slice":
            starts, ends = self.integers(node, 1, "starts"), self.integers(node, 2, "ends")
            steps = self.integers(node, 4) if len(node.inputs) > 4 else [1]
            if starts is None or ends is None or not steps or steps[0] == 0 or len(starts) != 1:
                return None
            return list(range(count))[starts[0] : ends[0] : steps[0]] if steps[0] > 0 else None
        return None

    def count(self, tensor: gs.Tensor) -> int | None:
        """Return the number of elements of a vector or a scalar."""
        shape = self.shape(tensor)
        if shape is None or len(shape) > 1:
            return None
        return 1 if not shape else shape[0] if isinstance(shape[0], int) else None

    # -- Reshape -------------------------------------------------------------------------------------------------------

    def runs(self, node: gs.Node) -> list[Run] | None:
        """Return how the axes of a Reshape or Flatten belong together, None if nothing is known."""
        before, after = self.shape(node.inputs[0]), self.reshaped(node)
        return None if before is None or after is None else runs_of(before, after)

    def reshaped(self, node: gs.Node) -> tuple[Dim, ...] | None:
        """Return the shape after a Reshape or Flatten as products of sizes before it."""
        before = self.shape(node.inputs[0])
        if before is None:
            return None
        if operator(node) == "Flatten":
            axis = int(node.attrs.get("axis", 1))
            axis += len(before) if axis < 0 else 0
            return size_of(product(before[:axis])), size_of(product(before[axis:]))
        rank = self.count(node.inputs[1]) if len(node.inputs) > 1 else None
        if rank is None or rank > LONGEST:
            return None
        dims: list[Dim] = []
        free = -1
        for j in range(rank):
            found = self.element(node, 1, j)
            if isinstance(found, Literal) and found.value == -1:
                free = j
                dims.append(1)
            elif isinstance(found, Literal) and found.value == 0 and not node.attrs.get("allowzero", 0):
                if j >= len(before):
                    return None
                dims.append(before[j])
            elif isinstance(found, Literal):
                dims.append(found.value)
            else:
                shape = self.shape(found.tensor) if found is not None else None
                dims.append(shape[found.axis] if found is not None and shape else f"?{node.outputs[0].name}:{j}")
        if free >= 0:
            rest = over(product(before), product(dims))
            dims[free] = f"?{node.outputs[0].name}:{free}" if rest is None else size_of(rest)
        return tuple(dims)
