"""Weights as integers and scales, computed once for all plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import PassError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_value, followed
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived
from onnxsqueeze.linear.bias import bias_tensor, set_bias
from onnxsqueeze.targets.pairs import limited_scales, rounded, rows_of, weight_of
from onnxsqueeze.techniques.quantization.grids import TINY, weight_scales

__all__ = [
    "HELD",
    "ROW",
    "FloatArray",
    "Integers",
    "Kept",
    "Reading",
    "correct_bias",
    "integers",
    "known",
    "laid",
    "multiplied",
    "product_scales",
    "read_by",
    "reader",
    "remember",
    "scales_of",
    "values_of",
    "wide_scales",
]

FloatArray = NDArray[np.floating]
Held = TypeVar("Held")
ROW = 8
"""Weights that must share a scale at least, so that scales do not outweigh what int8 saves."""
HELD = 1 << 23
"""Quantized weights larger than this, in bytes, are computed while the file is written instead of held."""


@dataclass(frozen=True)
class Reading:
    """What a layer multiplies by: an initializer, transposed if ``flipped``, whose ``axis`` holds its outputs."""

    constant: gs.Constant
    axis: int
    flipped: bool


def read_by(node: gs.Node) -> Reading | None:
    """Return the initializer that is the weight of a Conv, Gemm or MatMul, also through Identity and Transpose.

    None for a weight that the caller may override, that is no float32, or that is computed in another way.
    """
    found = followed(node.inputs[1], ("Identity", "Transpose"), fixed=True)
    if found is None or found.constant is None or np.dtype(found.constant.dtype) != np.float32:
        return None
    axis = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1
    rank = len(found.constant.shape)
    axes = list(range(rank))
    for step in reversed(found.passed):
        if step.op == "Transpose":
            axes = [axes[i] for i in step.attrs.get("perm") or list(range(rank))[::-1]]
    if axes == sorted(axes):
        return Reading(found.constant, axis, False)
    return Reading(found.constant, axes[axis], True) if rank == 2 else None


@dataclass(frozen=True, eq=False)
class Integers:
    """An initializer as integers: ``constant ≈ q·scale / factor``, the scales along ``axis``, the factor along the
    other one (None: there is none).
    """

    constant: gs.Constant
    q: gs.Constant
    scale: gs.Constant
    axis: int
    factor: FloatArray | None = None


def known(graph: Graph, constant: gs.Constant) -> list[Integers]:
    """Return the integers that edits of this graph have made of an initializer."""
    found: list[Integers] = graph.index.made.get(("integers", id(constant)), [])
    return found


def remember(graph: Graph, made: Integers) -> Integers:
    """Let other readers of the same initializer find its integers, and return them."""
    graph.index.made.setdefault(("integers", id(made.constant)), []).append(made)
    return made


def laid(graph: Graph, scope: Graph, q: gs.Constant, flipped: bool, before: gs.Node) -> gs.Tensor:
    """Return the integers as a layer reads them: through a Transpose, which the runtime folds, if ``flipped``."""
    if not flipped:
        return q
    inside = {id(node) for node in scope.nodes}
    for each in q.outputs:
        if each.op == "Transpose" and id(each) in inside:
            return each.outputs[0]
    return edit.insert(graph, scope, "Transpose", [q], f"{q.name}_transposed", {"perm": [1, 0]}, before=before)


class Kept:
    """Scales and integers of weights that were computed for one plan, for the next."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[int, ...], bytes], NDArray[Any]] = {}
        self._last: tuple[tuple[object, ...], Any] | None = None

    def last(self, make: Callable[[], Held], *key: object) -> Held:
        """Return what ``make`` has returned for the same key, and forget it when another is asked for: it is large."""
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = key, make()
        found: Held = self._last[1]
        return found

    def get(self, make: Callable[[], NDArray[Any]], values: FloatArray, what: str) -> NDArray[Any]:
        """Return what ``make`` has returned for the same values, or returns now: in bodies, names may be others'."""
        key = what, values.shape, blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


def scales_of(values: FloatArray, axes: Sequence[int], floor: FloatArray | float = 0.0) -> FloatArray:
    """Return the symmetric int8 scales of a weight, one per index of ``axes``, in a shape that broadcasts over it."""
    moved = np.moveaxis(values, axes, range(len(axes)))
    count = prod(moved.shape[: len(axes)])
    scales = np.maximum(weight_scales(moved.reshape(count, -1)), np.float32(floor))
    shape = [values.shape[a] if a in axes else 1 for a in range(values.ndim)]
    return np.asarray(scales.reshape(shape), np.float32)


def _nearest(values: FloatArray, scales: FloatArray, dtype: type[np.signedinteger[Any]] = np.int8) -> NDArray[Any]:
    q, most = values / scales.astype(values.dtype), np.iinfo(dtype).max
    return np.clip(np.rint(q, out=q), -most, most, out=q).astype(dtype)


def product_scales(
    values: FloatArray, op: str, transposed: bool = False, per_tensor: bool = False, pairs: bool = True
) -> FloatArray:
    """Return the scales of a weight that is multiplied in integers, one per output channel or the largest of them.

    They are in a shape that broadcasts over the weight, and with ``pairs`` such that few neighbours have to be
    cut (see ``onnxsqueeze.targets.pairs``).
    """
    rows = rows_of(values, op, transposed)
    scales = weight_scales(rows)
    if pairs:
        scales = limited_scales(rows, scales)
    if per_tensor:
        return np.asarray(scales.max(), np.float32).reshape((1,) * values.ndim)
    axis = 0 if op == "Conv" or transposed else 1
    return scales.reshape([-1 if a == axis else 1 for a in range(values.ndim)])


def multiplied(
    graph: Graph,
    hint: str,
    values: FloatArray,
    scales: FloatArray,
    op: str,
    transposed: bool = False,
    read: Callable[[], FloatArray] | None = None,
    pairs: bool = True,
) -> gs.Constant:
    """Return the int8 initializer of a weight that is multiplied in integers: with ``pairs`` no neighbours saturate."""

    def made(weight: FloatArray) -> NDArray[np.int8]:
        rows = rows_of(weight, op, transposed)
        each = np.broadcast_to(scales.reshape(-1), len(rows))
        q = rounded(rows, each) if pairs else _nearest(rows, each.reshape(-1, 1))
        return np.asarray(weight_of(q, weight.shape, op, transposed), np.int8)

    return _initializer(graph, hint, values, made, read)


def _initializer(
    graph: Graph,
    hint: str,
    values: FloatArray,
    made: Callable[[FloatArray], NDArray[Any]],
    read: Callable[[], FloatArray] | None,
    dtype: type[np.signedinteger[Any]] = np.int8,
) -> gs.Constant:
    """Return the initializer made of ``values``; a large one is made of ``read()`` when the file is written."""
    name = f"{hint}_{np.dtype(dtype).name}"
    if values.size > HELD and read is not None:
        return edit.constant(graph, name, Derived(values.shape, dtype, lambda: made(read())))
    return edit.constant(graph, name, np.ascontiguousarray(made(values)))


def integers(
    graph: Graph,
    hint: str,
    values: FloatArray,
    scales: FloatArray,
    read: Callable[[], FloatArray] | None = None,
    wide: bool = False,
) -> gs.Constant:
    """Return the int8 initializer, ``wide`` the int16 one, of a weight that is only stored."""
    dtype: type[np.signedinteger[Any]] = np.int16 if wide else np.int8
    return _initializer(graph, hint, values, lambda weight: _nearest(weight, scales, dtype), read, dtype)


def wide_scales(values: FloatArray) -> FloatArray:
    """Return the scales of the rows of a matrix in 16 bits: of its extremes, as nothing is gained by cutting them."""
    return np.asarray(np.maximum(np.abs(values).max(axis=1, keepdims=True) / np.float32(32767), np.float32(TINY)))


def reader(tensor: gs.Tensor) -> Callable[[], FloatArray] | None:
    """Return a function that reads an initializer again later; None for weights that nodes compute."""
    return (lambda: values_of(tensor)) if isinstance(tensor, gs.Constant) else None


def correct_bias(graph: Graph, node: gs.Node, weight: gs.Tensor, error: NDArray[np.float64]) -> None:
    """Take off a layer's bias the mean ``error`` (N) that another weight in the place of ``weight`` makes."""
    bias = bias_tensor(node)
    old = 0 if bias is None else values_of(bias)
    name = f"{weight.name}_bias" if bias is None else bias.name
    set_bias(node, edit.constant(graph, f"{name}_corrected", (old + error).astype(np.float32)))


def values_of(tensor: gs.Tensor) -> FloatArray:
    """Return the value of a constant tensor."""
    value = constant_value(tensor)
    if value is None:
        raise PassError(f"the weight '{tensor.name}' is not constant any more")
    return np.asarray(value, np.float32)
