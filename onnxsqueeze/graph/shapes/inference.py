"""Shapes of outputs where ONNX's own inference gives up: behind other domains and shapes that are computed."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.operators import ELEMENTWISE, POOLS, REDUCTIONS, SAME_SHAPE, operator
from onnxsqueeze.graph.shapes.products import Dim, Shapes, broadcast_shape, range_of

__all__ = ["infer_shape"]

Shape = tuple["Dim | None", ...]


def infer_shape(sizes: Shapes, node: gs.Node) -> Shape | None:
    """Return the shape of the outputs, all of which have it; None if not even the rank is known."""
    op = operator(node)
    shapes = [sizes.shape(tensor) if tensor.name else () for tensor in node.inputs]
    if not shapes or shapes[0] is None:
        return None
    x, w = shapes[0], shapes[1] if len(shapes) > 1 else None
    if op in ELEMENTWISE:
        known = [shape for shape in shapes if shape is not None]
        return broadcast_shape(known) if len(known) == len(shapes) else None
    if op in SAME_SHAPE:
        return x
    if op in ("Reshape", "Flatten"):
        return sizes.reshaped(node)
    if op == "Transpose":
        return tuple(x[axis] for axis in node.attrs.get("perm") or reversed(range(len(x))))
    if op == "Shape":
        return (len(range(len(x))[range_of(node)]),)
    if op == "Conv" and w:
        return (x[0], w[0], *(None for _ in x[2:]))
    if op == "ConvTranspose" and w:
        channels = w[1] * int(node.attrs.get("group", 1)) if isinstance(w[1], int) else None
        return (x[0], channels, *(None for _ in x[2:]))
    if op in POOLS:
        return (*x[:2], *(1 if op.startswith("Global") else None for _ in x[2:]))
    if op == "Resize":
        return (None,) * len(x)
    if op == "Gemm" and w:
        return x[1 if node.attrs.get("transA", 0) else 0], w[0 if node.attrs.get("transB", 0) else 1]
    if op == "MatMul" and w and len(x) > 1 and len(w) > 1:
        return (*broadcast_shape([x[:-2], w[:-2]]), x[-2], w[-1])
    if op in REDUCTIONS:
        return _reduced(sizes, node, x)
    if op in ("Squeeze", "Unsqueeze"):
        return _squeezed(sizes, node, x)
    if op in ("Concat", "Split") and x:
        return _joined(node, x, shapes if op == "Concat" else ())
    if op == "Slice":
        picked = sizes.picked(node)
        axes = sizes.integers(node, 3, "axes")
        cut = range(len(x)) if axes is None else [axis % len(x) for axis in axes]
        return tuple(None if axis in cut else size for axis, size in enumerate(x)) if picked is None else (len(picked),)
    if op == "Gather" and w is not None and x:
        axis = int(node.attrs.get("axis", 0)) % len(x)
        return (*x[:axis], *w, *x[axis + 1 :])
    return None


def _reduced(sizes: Shapes, node: gs.Node, x: Shape) -> Shape | None:
    axes = sizes.integers(node, 1, "axis" if node.op in ("ArgMax", "ArgMin") else "axes")
    if not axes:
        return None
    reduced = [axis % len(x) for axis in axes]
    if node.attrs.get("keepdims", 1):
        return tuple(1 if axis in reduced else size for axis, size in enumerate(x))
    return tuple(size for axis, size in enumerate(x) if axis not in reduced)


def _squeezed(sizes: Shapes, node: gs.Node, x: Shape) -> Shape | None:
    axes = sizes.integers(node, 1, "axes")
    if axes is None:
        return None
    if node.op == "Squeeze":
        gone = [axis % len(x) for axis in axes]
        return tuple(size for axis, size in enumerate(x) if axis not in gone)
    rank = len(x) + len(axes)
    new = [axis % rank for axis in axes]
    rest = iter(x)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


def _joined(node: gs.Node, x: Shape, shapes: Sequence[Shape | None]) -> Shape:
    """Return the shape of a Concat of inputs of these shapes, or of a part of ``x`` if there are none."""
    axis = int(node.attrs.get("axis", 0 if node.op == "Split" else 1)) % len(x)
    parts = [shape[axis] for shape in shapes if shape is not None and len(shape) == len(x)]
    known = [size for size in parts if isinstance(size, int)]
    whole = sum(known) if shapes and len(known) == len(shapes) else None
    return (*x[:axis], whole, *x[axis + 1 :])
