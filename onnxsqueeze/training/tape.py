"""What rules write on: the nodes of a backward pass, over tensors whose shapes and types are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["Gradients", "Rule", "Tape", "Unsupported", "attributes"]

Shape = tuple[int, ...]
Gradients = Sequence["str | None"]
"""The gradients of a node's outputs, or of its inputs, by slot; None where there is none."""
Rule = Callable[["Tape", onnx.NodeProto, Gradients], Gradients]
"""From a node and the gradients of its outputs to those of its inputs."""


class Unsupported(Exception):
    """Says why a node cannot be differentiated."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


@dataclass
class Tape:
    """Nodes that are emitted, in order, and what is known of the tensors that they read.

    ``shapes`` and ``types`` are those of one run, ``values`` the tensors that are the same in every run, as far as
    they were asked for. ``dtype`` is the float type of all gradients.
    """

    shapes: Mapping[str, Shape]
    types: Mapping[str, np.dtype[Any]]
    values: Mapping[str, NDArray[Any]]
    dtype: np.dtype[Any]
    active: frozenset[str] = frozenset()
    """Tensors that depend on what the gradients are taken by."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    saved: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Further outputs that nodes of the forward pass must have, by its first: (slot, name)."""
    _known: dict[tuple[str, Shape, bytes], str] = field(default_factory=dict)

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Emit a node with one output and return its name."""
        output = f"grad/{len(self.nodes)}/{op}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attrs))
        return output

    def ops(self, op: str, *inputs: str, outputs: int, **attrs: Any) -> list[str]:
        """Emit a node with several outputs and return their names."""
        names = [f"grad/{len(self.nodes)}/{op}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attrs))
        return names

    def constant(self, values: NDArray[Any]) -> str:
        """Return the name of a constant; equal ones are one."""
        values = np.asarray(values)  # ascontiguousarray would make a scalar a vector
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._known:
            self._known[key] = f"grad/c{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(values, self._known[key]))
        return self._known[key]

    def number(self, value: float) -> str:
        """Return a scalar of the float type."""
        return self.constant(np.asarray(value, self.dtype))

    def ints(self, *values: int) -> str:
        """Return a vector of int64."""
        return self.constant(np.array(values, np.int64))

    def wants(self, node: onnx.NodeProto, slot: int) -> bool:
        """Whether the gradient of an input is of use."""
        return slot < len(node.input) and node.input[slot] in self.active

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor."""
        return self.shapes[name]

    def value(self, node: onnx.NodeProto, slot: int) -> NDArray[Any] | None:
        """Return the value of an input that is constant; None if it is left out."""
        if slot >= len(node.input) or not node.input[slot]:
            return None
        name = node.input[slot]
        if name not in self.values:
            raise Unsupported(f"input {slot} of {node.op_type} is computed at run time")
        return self.values[name]

    # Pieces that many rules need.

    def add(self, one: str, other: str) -> str:
        """Emit ``one + other``."""
        return self.op("Add", one, other)

    def sub(self, one: str, other: str) -> str:
        """Emit ``one − other``."""
        return self.op("Sub", one, other)

    def mul(self, one: str, other: str) -> str:
        """Emit ``one · other``."""
        return self.op("Mul", one, other)

    def div(self, one: str, other: str) -> str:
        """Emit ``one / other``."""
        return self.op("Div", one, other)

    def times(self, one: str, factor: float) -> str:
        """Emit ``factor · one``."""
        return one if factor == 1 else self.op("Mul", one, self.number(factor))

    def floats(self, condition: str) -> str:
        """Emit a condition as 0 and 1."""
        return self.op("Cast", condition, to=helper.np_dtype_to_tensor_dtype(self.dtype))

    def sum(self, tensor: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """Emit the sum over some axes; over none it is the tensor."""
        if not len(axes):
            return tensor
        return self.op("ReduceSum", tensor, self.ints(*axes), keepdims=int(keepdims))

    def mean(self, tensor: str, axes: Sequence[int]) -> str:
        """Emit the mean over some axes, which stay with the size 1."""
        return self.op("ReduceMean", tensor, self.ints(*axes), keepdims=1) if len(axes) else tensor

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """Emit the tensor in a shape that is wholly known."""
        return self.op("Reshape", tensor, self.ints(*shape), allowzero=1)

    def transpose(self, tensor: str, perm: Sequence[int]) -> str:
        """Emit the tensor with its axes in another order."""
        return tensor if list(perm) == sorted(perm) else self.op("Transpose", tensor, perm=list(perm))

    def expand(self, tensor: str, shape: Sequence[int]) -> str:
        """Emit the tensor broadcast to a shape."""
        return self.op("Expand", tensor, self.ints(*shape))

    def reduced(self, grad: str, shape: Shape, to: Shape) -> str:
        """Emit the gradient of what was broadcast from ``to`` to ``shape``: the sum over what was repeated."""
        if tuple(shape) == tuple(to):
            return grad
        extra = len(shape) - len(to)
        padded = (1,) * extra + tuple(to)
        axes = [i for i, (large, small) in enumerate(zip(shape, padded, strict=True)) if large != small or i < extra]
        found = self.sum(grad, axes)
        return self.reshape(found, to) if extra else found
