"""Shapes of a graph as far as they can be known, and where the numbers of a computed shape come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.operators import ELEMENTWISE, POOLS, REDUCTIONS, SAME_SHAPE, operator
from onnxsqueeze.view import View

__all__ = ["Dim", "Dimension", "Literal", "Run", "Sizes"]

Dim = int | str
"""A known size or a symbol; equal symbols are equal sizes, and an unknown size is a symbol of its own."""
Monomial = tuple[int, tuple[str, ...]]

LONGEST = 64
"""Elements of a constant that is still looked at as a shape."""
_TIMES = "\0"


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


@dataclass(frozen=True)
class Run:
    """Neighbouring axes before and after a Reshape that hold the same elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: tuple[tuple[Dim, ...], tuple[Dim, ...]]

    @property
    def same(self) -> bool:
        """Whether one axis has become one axis."""
        return len(self.before) == len(self.after) == 1 and self.sizes[0] == self.sizes[1]

    @property
    def known(self) -> bool:
        """Whether all sizes are numbers that agree."""
        return all(isinstance(d, int) for side in self.sizes for d in side) and _product(self.sizes[0]) == _product(
            self.sizes[1]
        )


class Sizes:
    """What is known of the shapes of a graph: that of ONNX's inference, and more where it stops.

    It goes on through operators of other domains and through shapes that are computed from shapes.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.positions = {id(node): i for i, node in enumerate(view.nodes)}
        self._shapes: dict[int, tuple[Dim, ...] | None] = {}
        self._tensors: list[gs.Tensor] = []
        for node in view.nodes:
            for tensor in (*node.inputs, *node.outputs):
                if id(tensor) not in self._shapes:
                    self._put(node, tensor)

    def _put(self, node: gs.Node, tensor: gs.Tensor) -> None:
        found = self.view.shape(tensor)
        if (found is None or None in found) and any(tensor is t for t in node.outputs) and not self.view.in_body(node):
            own = self._infer(node, tensor)
            if found is None or own is None or len(own) != len(found):
                found = own if found is None else found
            else:
                found = tuple(b if a is None else a for a, b in zip(found, own, strict=True))
        self._tensors.append(tensor)
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
            axes = range(rank)[_range_of(source)]
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
        before, after = self.shape(node.inputs[0]), self._reshaped(node)
        if before is None or after is None:
            return None
        runs: list[Run] = []
        i = j = 0
        while i < len(before) or j < len(after):
            if i < len(before) and before[i] == 1 and not (j < len(after) and after[j] == 1):
                runs.append(Run((i,), (), ((1,), ())))
                i += 1
                continue
            if j < len(after) and after[j] == 1 and not (i < len(before) and before[i] == 1):
                runs.append(Run((), (j,), ((), (1,))))
                j += 1
                continue
            k, m = i + 1, j + 1
            while (p := _product(before[i:k])) != (q := _product(after[j:m])):
                if k >= len(before) and m >= len(after):
                    break
                shorter = _divides(p, q) if _divides(p, q) != _divides(q, p) else None
                k += k < len(before) and (shorter is not False or m >= len(after))
                m += m < len(after) and (shorter is not True or k >= len(before))
            k, m = min(k, len(before)), min(m, len(after))
            runs.append(Run(tuple(range(i, k)), tuple(range(j, m)), (before[i:k], after[j:m])))
            i, j = k, m
        return runs

    def _reshaped(self, node: gs.Node) -> tuple[Dim, ...] | None:
        """Return the shape after a Reshape or Flatten as products of sizes before it."""
        before = self.shape(node.inputs[0])
        if before is None:
            return None
        if operator(node) == "Flatten":
            axis = int(node.attrs.get("axis", 1))
            axis += len(before) if axis < 0 else 0
            return _dim(_product(before[:axis])), _dim(_product(before[axis:]))
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
            rest = _over(_product(before), _product(dims))
            dims[free] = f"?{node.outputs[0].name}:{free}" if rest is None else _dim(rest)
        return tuple(dims)

    # -- inference -----------------------------------------------------------------------------------------------------

    def _infer(self, node: gs.Node, output: gs.Tensor) -> tuple[Dim, ...] | None:
        """Return the shape of an output where ONNX's own inference gave up."""
        op = operator(node)
        shapes = [self.shape(t) if t.name else () for t in node.inputs]
        if not shapes or any(s is None for s in shapes[:1] if op not in ("Shape",)):
            return None
        x: tuple[Dim, ...] = shapes[0] or ()
        unknown = [f"?{output.name}:{i}" for i in range(len(x) + 8)]
        if op in ELEMENTWISE:
            return None if None in shapes else _broadcast([s for s in shapes if s is not None])
        if op in SAME_SHAPE:
            return x
        if op == "Transpose":
            return tuple(x[i] for i in node.attrs.get("perm") or reversed(range(len(x))))
        if op in ("Reshape", "Flatten"):
            return self._reshaped(node)
        if op == "Shape":
            return None if shapes[0] is None else (len(range(len(x))[_range_of(node)]),)
        if op in ("Conv", "ConvTranspose") and shapes[1]:
            w = shapes[1]
            group = int(node.attrs.get("group", 1))
            channels = w[0] if op == "Conv" else w[1] * group if isinstance(w[1], int) else unknown[1]
            return (x[0], channels, *unknown[2 : len(x)])
        if op in POOLS and len(x) > 2:
            return (*x[:2], *(1 if op.startswith("Global") else u for u in unknown[2 : len(x)]))
        if op == "Resize":
            return tuple(unknown[: len(x)])
        if op == "Gemm" and shapes[1]:
            return x[-1 if node.attrs.get("transA", 0) else 0], shapes[1][0 if node.attrs.get("transB", 0) else 1]
        if op == "MatMul" and shapes[1] and len(x) > 1 and len(shapes[1]) > 1:
            return (*_broadcast([x[:-2], shapes[1][:-2]]), x[-2], shapes[1][-1])
        if op in REDUCTIONS:
            axes = self.integers(node, 1, "axes")
            reduced = {a % len(x) for a in axes} if axes and x else None
            if reduced is None:
                return None
            if node.attrs.get("keepdims", 1):
                return tuple(1 if i in reduced else d for i, d in enumerate(x))
            return tuple(d for i, d in enumerate(x) if i not in reduced)
        if op in ("Squeeze", "Unsqueeze"):
            axes = self.integers(node, 1, "axes")
            if axes is None:
                return None
            if op == "Squeeze":
                gone = {a % len(x) for a in axes}
                return tuple(d for i, d in enumerate(x) if i not in gone)
            new = {a % (len(x) + len(axes)) for a in axes}
            rest = iter(x)
            return tuple(1 if i in new else next(rest) for i in range(len(x) + len(axes)))
        if op in ("Concat", "Split") and x:
            axis = int(node.attrs.get("axis", 0)) % len(x)
            parts = [s[axis] for s in shapes if s and len(s) == len(x)] if op == "Concat" else []
            whole = sum(p for p in parts if isinstance(p, int))
            known = len(parts) == len(shapes) and all(isinstance(p, int) for p in parts)
            return (*x[:axis], whole if op == "Concat" and known else unknown[axis], *x[axis + 1 :])
        if op == "Slice":
            taken = self.picked(node) if len(x) == 1 else None
            if taken is not None:
                return (len(taken),)
            axes = self.integers(node, 3, "axes")
            cut = range(len(x)) if axes is None else {a % len(x) for a in axes}
            return tuple(unknown[i] if i in cut else d for i, d in enumerate(x))
        if op == "Gather" and len(shapes) > 1 and shapes[1] is not None and x:
            axis = int(node.attrs.get("axis", 0)) % len(x)
            return (*x[:axis], *shapes[1], *x[axis + 1 :])
        return None


def _range_of(node: gs.Node) -> slice:
    return slice(int(node.attrs.get("start", 0)), int(node.attrs["end"]) if "end" in node.attrs else None)


def _product(dims: Sequence[Dim]) -> Monomial:
    symbols = [part for d in dims if isinstance(d, str) for part in d.split(_TIMES)]
    numbers = [int(s[1:]) for s in symbols if s.startswith("#")]
    return prod(d for d in dims if isinstance(d, int)) * prod(numbers), tuple(
        sorted(s for s in symbols if not s.startswith("#"))
    )


def _dim(product: Monomial) -> Dim:
    number, symbols = product
    if not symbols:
        return number
    return _TIMES.join(([f"#{number}"] if number != 1 else []) + list(symbols))


def _over(whole: Monomial, part: Monomial) -> Monomial | None:
    if part[0] == 0 or whole[0] % part[0]:
        return None
    left, right = Counter(whole[1]), Counter(part[1])
    return None if right - left else (whole[0] // part[0], tuple(sorted((left - right).elements())))


def _divides(part: Monomial, whole: Monomial) -> bool:
    return _over(whole, part) is not None


def _broadcast(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    rank = max(map(len, shapes))
    dims: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = [s[axis] for s in shapes if len(s) >= -axis and s[axis] != 1]
        known = [s for s in sizes if isinstance(s, int)]
        dims.append(1 if not sizes else known[0] if known else sizes[0])
    return tuple(dims)
