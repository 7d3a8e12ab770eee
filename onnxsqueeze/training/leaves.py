"""What can be trained: the constants of layers as float tensors that a step graph is fed, and the way back.

A weight that is stored in few bits is two leaves: its integers, which are rounded in every step while gradients go
straight through to a latent float, and the scales of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.constants import constant_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import subgraphs
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.techniques.quantization.emit.nbits import packed, repacked

__all__ = ["Leaf", "leaves"]

Floats = NDArray[np.float32]
_NORMS = ("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization")
SLOTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "PRelu": (1,),
    "MatMulInteger": (1,), "RMSNormalization": (1,), **dict.fromkeys(_NORMS, (1, 2)),
}  # fmt: skip
"""Inputs that hold weights, biases, and scales and shifts of norms."""
BEHIND = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Div")
"""Behind these a vector that is added or multiplied belongs to the layer or the norm."""
HANDS_ON = (
    "Cast",
    "DequantizeLinear",
    "Identity",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
)
SPARSE = 0.1
"""From this share of zeros on they were made on purpose, and stay."""
FEW = 8
"""The largest integer of a weight whose rounding is trained: of 4 bits and fewer."""


@dataclass(eq=False)
class Leaf:
    """One constant, as the float tensor ``tensor`` that is fed in its place, of the values ``start``.

    ``unit`` is what a step of the learning rate 1 moves it by. Integers lie from ``low`` to ``high``; where ``free`` is
    False values stay. ``store`` makes the constant's values of those that were found, ``readers`` are the keys of the
    nodes that read it.
    """

    tensor: str
    constant: gs.Constant
    start: Floats
    unit: float
    store: Callable[[Floats], NDArray[Any]]
    low: float | None = None
    high: float | None = None
    free: NDArray[np.bool_] | None = None
    readers: set[str] = field(default_factory=set)

    @property
    def rounds(self) -> bool:
        """Whether it holds integers."""
        return self.low is not None

    def fed(self, value: Floats) -> Floats:
        """Return what the graph is to compute with: integers are rounded."""
        return value if self.low is None else np.clip(np.rint(value), self.low, self.high)

    def put(self, value: Floats) -> None:
        """Give the constant new values."""
        self.constant.values = self.store(self.fed(value))


def leaves(view: View, wanted: Callable[[gs.Node], bool]) -> list[Leaf]:
    """Return the leaves of all layers of the main graph that are ``wanted``, in the order of their nodes."""
    fixed = _fixed(view)
    found: dict[str, Leaf] = {}
    barred: set[str] = set()
    for node in view.nodes:
        if view.in_body(node) or (node.outputs and id(node.outputs[0]) in fixed):
            continue
        mine = list(_read(view, node, fixed))
        if not wanted(node):
            barred.update(leaf.tensor for leaf in mine)
        for leaf in mine:
            found.setdefault(leaf.tensor, leaf).readers.add(key_of(node))
    reach = {key for key in barred if key in found}
    mean = [leaf.unit for leaf in found.values() if leaf.start.ndim > 1 and not leaf.rounds]
    usual = float(np.median(mean)) if mean else 0.1
    for leaf in found.values():
        if leaf.start.ndim < 2 and not leaf.rounds:
            leaf.unit = max(leaf.unit, usual)
    return [leaf for leaf in found.values() if leaf.tensor not in reach]


def _fixed(view: View) -> set[int]:
    """Return the ids of the tensors that nodes compute of constants alone."""
    found: set[int] = set()
    for node in view.nodes:
        inputs = [t for t in node.inputs if t.name]
        known = all(view.constant(t) is not None or id(t) in found for t in inputs)
        if known and next(subgraphs(node), None) is None and "Random" not in node.op:
            found.update(id(t) for t in node.outputs)
    return found


def _read(view: View, node: gs.Node, fixed: set[int]) -> Iterator[Leaf]:
    if not is_standard(node):
        return
    for slot in SLOTS.get(node.op, ()):
        if slot < len(node.inputs) and node.inputs[slot].name:
            yield from _behind(view, node.inputs[slot], fixed)
    if node.op in ("Add", "Sub", "Mul") and len(node.inputs) == 2:
        for constant, other in (node.inputs, node.inputs[::-1]):
            maker = other.inputs[0] if other.inputs else None
            shape = view.shape(constant)
            if maker is None or maker.op not in BEHIND or id(other) in fixed or shape is None or len(shape) > 4:
                continue
            if sum(size != 1 for size in shape) == 1:
                yield from _behind(view, constant, fixed)


def _behind(view: View, tensor: gs.Tensor, fixed: set[int]) -> Iterator[Leaf]:
    """Yield the leaves that a tensor is made of, through nodes that hand values on or restore them."""
    constant = view.constant(tensor)
    if constant is not None:
        if np.dtype(constant.dtype) == np.float32 and len(constant.shape) and prod(constant.shape):
            yield _float(constant)
        return
    if id(tensor) not in fixed:
        return
    node = tensor.inputs[0]
    if node.op not in HANDS_ON or not is_standard(node):
        return
    if node.op == "Cast":
        yield from _cast(view, tensor, node, fixed)
    elif node.op == "DequantizeLinear" and constant_of(node.inputs[0]) is not None:
        yield from _bias(view, tensor, node)
    else:
        yield from _behind(view, node.inputs[0], fixed)  # scales of DequantizeLinear stay: those of biases hang on them
        if node.op == "Mul":
            yield from _behind(view, node.inputs[1], fixed)


def _rms(value: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) if value.size else 0.0


def _float(constant: gs.Constant) -> Leaf:
    value = np.array(peek(constant), np.float32)
    zeros = value == 0
    free = ~zeros if value.ndim > 1 and SPARSE <= zeros.mean() < 1 else None
    return Leaf(str(constant.name), constant, value, _rms(value), lambda new: new.astype(np.float32), free=free)


def _cast(view: View, tensor: gs.Tensor, node: gs.Node, fixed: set[int]) -> Iterator[Leaf]:
    """A weight in 16-bit floats, or integers of few bits."""
    constant = constant_of(node.inputs[0])
    kind, to = np.dtype(constant.dtype) if constant is not None else None, view.dtype(tensor)
    if constant is not None and kind is not None and (kind == np.float16 or kind.name == "bfloat16"):
        value = np.array(peek(constant)).astype(np.float32)
        if len(constant.shape):
            yield Leaf(str(tensor.name), constant, value, _rms(value), lambda new: new.astype(kind))
    elif constant is not None and kind is not None and kind.name in ("int8", "int4", "int2") and to == np.float32:
        value = np.array(peek(constant)).astype(np.float32)
        if np.abs(value).max(initial=0) <= FEW:
            low, high = _limits(value, kind.name)
            yield Leaf(str(tensor.name), constant, value, 1.0, lambda new: new.astype(kind), low, high)
    elif constant is None and (found := packed(tensor)) is not None and found.bits <= 4:
        codes = found.codes()
        yield Leaf(
            str(tensor.name), found.constant, codes, 1.0, lambda new: repacked(new, found.bits), 0.0,
            float((1 << found.bits) - 1),
        )  # fmt: skip
    elif constant is None:
        yield from _behind(view, node.inputs[0], fixed)


def _limits(value: Floats, kind: str) -> tuple[float, float]:
    """Return the range of integers that a weight has: of its type, or of the bits that it fills."""
    bits = int(kind[3:]) if kind != "int8" else next(b for b in (2, 3, 4) if np.abs(value + 0.5).max() < 1 << (b - 1))
    return -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)


def _bias(view: View, tensor: gs.Tensor, node: gs.Node) -> Iterator[Leaf]:
    """A bias in int32, as the float that it stands for; weights that are dequantized stay as they are."""
    constant, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
    if constant is None or scale is None or np.dtype(constant.dtype) != np.int32 or len(constant.shape) != 1:
        return
    step = np.asarray(peek(scale), np.float64)
    value = (np.asarray(peek(constant), np.float64) * step).astype(np.float32)

    def store(new: Floats) -> NDArray[np.int32]:
        limit = 2.0**31 - 1
        return np.clip(np.rint(new / step), -limit, limit).astype(np.int32)

    yield Leaf(str(tensor.name), constant, value, _rms(value), store)
