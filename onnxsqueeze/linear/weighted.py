"""Which nodes have weights, wherever those stand, so that no pass leaves one out without a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.constants import constant_of, followed
from onnxsqueeze.graph.functions import callee
from onnxsqueeze.graph.operators import operator
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.attributes import LongList
from onnxsqueeze.ir.objects import subgraphs

__all__ = ["STORED", "Weighted", "is_stored", "weighted"]

MANY = 1024
"""From so many elements on a constant of floats with two axes is a weight, whoever reads it."""
STORED = "its weight is stored in integers already"
_SLOTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Einsum": (0, 1), "Gather": (0,),
          "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}  # fmt: skip
"""Inputs that hold weights of any size."""
_LISTS = ("coefficients", "nodes_values", "target_weights", "class_weights", "support_vectors", "leaf_weights")
"""Attributes of ``ai.onnx.ml`` that hold weights."""


@dataclass(frozen=True)
class Weighted:
    """A node with a weight: ``apart`` says what is special about it, ``behind`` holds the ids of what makes it."""

    node: gs.Node
    apart: str
    behind: frozenset[int] = frozenset()

    @property
    def reason(self) -> str:
        """Why a pass for Conv, Gemm and MatMul leaves it alone."""
        if operator(self.node) in ("Conv", "Gemm", "MatMul"):
            return self.apart or "its weight is not its second input"
        return self.apart or f"{operator(self.node)} is not one of Conv, Gemm and MatMul"


def weighted(view: View) -> Iterator[Weighted]:
    """Yield every node that reads a weight together with something computed, or has weights among its attributes.

    A weight is a constant of floats with two axes or more, or one that was stored in integers, also behind nodes that
    depend on constants alone.
    """
    made: dict[int, gs.Node] = {}
    for node in view.nodes:
        inputs = [tensor for tensor in node.inputs if tensor.name]
        fixed = [_is_fixed(tensor, made) for tensor in inputs]
        if node.op == "Constant" and is_standard(node):
            continue
        if inputs and all(fixed) and next(subgraphs(node), None) is None and node.op != "QuantizeLinear":
            made.update({id(tensor): node for tensor in node.outputs})
            continue
        found = [tensor for slot, tensor in enumerate(node.inputs) if _is_weight(view, node, slot, made)]
        if found:
            yield Weighted(node, _apart(view, node, found[0], made), frozenset(_behind(found[0], made)))
        elif any(_count(node.attrs.get(name)) > 1 for name in _LISTS):
            yield Weighted(node, f"its weights are attributes of {operator(node)}")


def _count(value: object) -> int:
    """Return how many numbers an attribute holds that is a list or a tensor."""
    return (
        prod(value.shape)
        if isinstance(value, gs.Constant)
        else len(value)
        if isinstance(value, (list, LongList))
        else 0
    )


def _behind(tensor: gs.Tensor, made: dict[int, gs.Node]) -> set[int]:
    """Return the ids of the nodes that a tensor is computed by, all of constants."""
    found: set[int] = set()
    stack = [tensor]
    while stack:
        node = made.get(id(stack.pop()))
        if node is not None and id(node) not in found:
            found.add(id(node))
            stack.extend(node.inputs)
    return found


def is_stored(tensor: gs.Tensor) -> bool:
    """Return whether the tensor is a weight in integers of 16 bits or fewer, maybe behind what restores it."""
    found = followed(tensor, ("Cast", "Constant", "DequantizeLinear", "Identity", "Mul", "Reshape", "Sub", "Transpose"))
    if found is None or found.constant is None or prod(found.constant.shape) < MANY:
        return False
    return np.dtype(found.constant.dtype).name in ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16")


def _is_fixed(tensor: gs.Tensor, made: dict[int, gs.Node]) -> bool:
    if isinstance(tensor, gs.Constant):
        return not getattr(tensor, "overridable", False)
    return id(tensor) in made or constant_of(tensor) is not None


def _is_weight(view: View, node: gs.Node, slot: int, made: dict[int, gs.Node]) -> bool:
    tensor = node.inputs[slot]
    constant = constant_of(tensor)
    known = is_standard(node) and slot in _SLOTS.get(node.op, ())
    if constant is None and id(tensor) in made:
        shape = view.shape(tensor)
        sizes = [size for size in shape or () if isinstance(size, int)]
        floats = view.dtype(tensor) in (None, np.float16, np.float32, np.float64)
        return floats and (shape is None or known or (len(sizes) > 1 and prod(sizes) >= MANY))
    if constant is None or getattr(constant, "overridable", False):
        return False
    if np.dtype(constant.dtype).kind != "f" and not is_stored(constant):
        return False
    return (known and len(constant.shape) > 1) or (len(constant.shape) > 1 and prod(constant.shape) >= MANY)


def _apart(view: View, node: gs.Node, tensor: gs.Tensor, made: dict[int, gs.Node]) -> str:
    if is_stored(tensor):
        return STORED
    if callee(view.graph, node) is not None:
        return "it is a call of a local function, whose insides stay"
    if id(tensor) in made:
        return f"its weight is computed of constants by {operator(made[id(tensor)])}"
    return ""
