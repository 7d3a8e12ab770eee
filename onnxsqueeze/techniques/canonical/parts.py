"""Weights that are cut out of one constant, such as those of experts: each a constant of its own."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.weights import Derived, peek

__all__ = ["parts"]

LEAST = 1024
"""A constant with fewer elements is no weight; folding takes care of it."""


def parts(view: View) -> dict[str, list[Derived]]:
    """Return by key what the Gathers, Slices and Splits make that cut up a constant, a value for each output.

    Only constants that nobody else reads, and that are as large as all parts of them together: the file does not grow.
    """
    found: dict[str, list[Derived]] = {}
    seen: set[int] = set()
    for node in view.nodes:
        whole = node.inputs[0] if node.inputs and node.op in _CUTS and is_standard(node) else None
        if whole is None or id(whole) in seen or view.constant(whole) is None:
            continue
        if len(whole.shape) < 2 or prod(whole.shape) < LEAST:
            continue
        seen.add(id(whole))
        made = {key_of(each): _cut(view, each, whole) for each in whole.outputs}
        values = [value for each in made.values() for value in each or ()]
        fits = sum(prod(value.shape) for value in values) <= prod(whole.shape)
        if fits and all(made.values()) and len(made) == len(whole.outputs) and not made.keys() & view.ambiguous:
            found.update({key: each for key, each in made.items() if each})
    return found


def _cut(view: View, node: gs.Node, whole: gs.Constant) -> list[Derived] | None:
    if node.op not in _CUTS or not is_standard(node) or any(view.is_output(t) for t in node.outputs):
        return None
    if any(tensor is whole for tensor in node.inputs[1:]):
        return None
    return _CUTS[node.op](view, node, whole)


def _gathered(view: View, node: gs.Node, whole: gs.Constant) -> list[Derived] | None:
    index, axis = view.value(node.inputs[1]), int(node.attrs.get("axis", 0))
    if index is None or index.size != 1:
        return None
    at = int(index.reshape(-1)[0])
    if not -whole.shape[axis] <= at < whole.shape[axis]:
        return None
    axis %= len(whole.shape)
    shape = (*whole.shape[:axis], *index.shape, *whole.shape[axis + 1 :])
    return [_derived(whole, shape, lambda value: np.take(value, at, axis).reshape(shape))]


def _sliced(view: View, node: gs.Node, whole: gs.Constant) -> list[Derived] | None:
    given = [view.value(t) if t.name else None for t in node.inputs[1:]]
    if len(given) < 2 or any(value is None for value, t in zip(given, node.inputs[1:], strict=True) if t.name):
        return None
    starts, ends = ([int(v) for v in np.reshape(given[i], -1)] for i in (0, 1))  # type: ignore[arg-type]
    axes = list(range(len(starts))) if len(given) < 3 or given[2] is None else [int(v) for v in given[2].reshape(-1)]
    steps = [1] * len(starts) if len(given) < 4 or given[3] is None else [int(v) for v in given[3].reshape(-1)]
    if any(step != 1 for step in steps):
        return None
    places = [slice(None)] * len(whole.shape)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        places[axis] = slice(start, end)
    shape = tuple(len(range(size)[place]) for size, place in zip(whole.shape, places, strict=True))
    return [_derived(whole, shape, lambda value: value[tuple(places)])] if prod(shape) else None


def _split(view: View, node: gs.Node, whole: gs.Constant) -> list[Derived] | None:
    axis = int(node.attrs.get("axis", 0)) % len(whole.shape)
    sizes = view.value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1].name else node.attrs.get("split")
    count = len(node.outputs)
    if sizes is None:
        if len(node.inputs) > 1 or whole.shape[axis] % count:
            return None
        sizes = [whole.shape[axis] // count] * count
    ends = np.cumsum([int(size) for size in np.reshape(sizes, -1)])
    if len(ends) != count or ends[-1] != whole.shape[axis]:
        return None
    return [
        _slab(whole, axis, int(end - size), int(end)) for size, end in zip(np.diff(ends, prepend=0), ends, strict=True)
    ]


def _slab(whole: gs.Constant, axis: int, start: int, end: int) -> Derived:
    shape = (*whole.shape[:axis], end - start, *whole.shape[axis + 1 :])
    return _derived(whole, shape, lambda value: np.take(value, range(start, end), axis))


def _derived(whole: gs.Constant, shape: tuple[int, ...], cut: Callable[[NDArray[np.generic]], object]) -> Derived:
    return Derived(shape, np.dtype(whole.dtype), lambda: np.ascontiguousarray(cut(peek(whole))))


_CUTS: dict[str, Callable[[View, gs.Node, gs.Constant], list[Derived] | None]] = {
    "Gather": _gathered, "Slice": _sliced, "Split": _split,
}  # fmt: skip
"""Operators that cut, and what they make."""
