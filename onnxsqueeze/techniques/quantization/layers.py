"""Which nodes of a graph can be quantized, in which form, and what belongs to a layer besides its node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.graph.words import type_name
from onnxsqueeze.linear.bias import bias_tensor, shares_inside
from onnxsqueeze.linear.weighted import is_stored
from onnxsqueeze.techniques.quantization.emit.weights import read_by
from onnxsqueeze.techniques.quantization.grids import Affine, Gate, fixed
from onnxsqueeze.techniques.quantization.sharing import Sharing

__all__ = ["LAYERS", "Layers", "weight_slots"]

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with a weight that can compute in integers."""

SMALL = 1024
"""Weights with fewer elements are left in float: nothing would be saved."""
SPARED = 0.02
"""The smallest weights, up to this share of all, are not stored in int8: much error is spared for a little size."""

_SLOTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "Gather": (0,),
          "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}  # fmt: skip


def weight_slots(node: gs.Node) -> tuple[int, ...]:
    """Return which inputs of the node are large initializers: those of known layers, and matrices elsewhere.

    ONNX Runtime restores a stored weight when it loads the model, so its own operators get it as before; those of
    other domains may be anything. Floats beside a weight of integers are its scales, and no weight.
    """
    if node.op in _SLOTS and is_standard(node):
        return tuple(s for s in _SLOTS[node.op] if s < len(node.inputs) and isinstance(node.inputs[s], gs.Constant))
    if not (is_standard(node) or node.domain == "com.microsoft") or any(map(is_stored, node.inputs)):
        return ()
    return tuple(
        slot for slot, t in enumerate(node.inputs)
        if isinstance(t, gs.Constant) and t.dtype == np.float32 and len(t.shape) > 1 and prod(t.shape) >= SMALL
    )  # fmt: skip


class Layers:
    """The nodes of a view that may be quantized, those that ``wanted`` accepts.

    ``static`` are Conv, Gemm and MatMul of the main graph that can run in integers; ``carried`` the operators around
    them that can follow; ``dynamic`` MatMul and Gemm that quantize their input at run time. The smallest weights, up to
    the ``share`` of all, are refused.
    """

    def __init__(
        self, view: View, wanted: Callable[[gs.Node], bool] = lambda node: True, share: float = SPARED
    ) -> None:
        self.view, self.wanted, self.target, self._share = view, wanted, view.target, share
        self.everywhere = self.target.integers.placement == "everywhere"
        layers = [n for n in view.of("Conv", "Gemm", "MatMul") if wanted(n) and self._is_layer(n)]
        self.sharing = Sharing(view, layers, self._stays)
        layers = [n for n in layers if self._agrees(n)]
        self.static = [
            n for n in layers
            if "static" in self.target.integers.forms and n.op in self.target.operators.layers
            and not view.in_body(n) and not self._on_tokens(n) and self._bias_is_known(n)
        ]  # fmt: skip
        chosen = {id(n) for n in self.static}
        self.dynamic = [
            n
            for n in layers
            if id(n) not in chosen and n.op != "Conv" and np.asarray(view.value(n.inputs[1])).size >= SMALL
        ]

    @cached_property
    def carried(self) -> list[gs.Node]:
        """Operators connected to static layers through operators of the same kind."""
        view = self.view
        own = {id(n) for layer in self.static for n in (layer, self.tail(layer))}
        if self.everywhere:
            free = [n for n in view.nodes if id(n) not in own and not view.in_body(n)]
            free = [n for n in free if self._is_carried(n) and self.wanted(n)]
            tails = {id(self.tail(n)) for n in free if self.tail(n) is not n}
            return [n for n in free if id(n) not in tails]
        around = [t for n in self.static for t in (n.inputs[0], *self.tail(n).outputs)]
        found: dict[int, gs.Node] = {}
        stack = around
        while stack:
            tensor = stack.pop()
            for node in (*tensor.outputs, *map(self._head, tensor.inputs)):
                if id(node) not in found and not view.in_body(node) and self._is_carried(node) and self.wanted(node):
                    found[id(node)] = node
                    stack.extend((*self.data_inputs(node), *self.tail(node).outputs))
        return [node for node in view.nodes if id(node) in found]

    def _is_carried(self, node: gs.Node) -> bool:
        rules = self.target.operators
        if not is_standard(node) or node.op not in (*rules.same_scale, *rules.own_scale, "HardSigmoid"):
            return False
        constants = [self.view.value(t) is not None for t in self.data_inputs(node)]
        if all(constants) or (any(constants) and (node.op in LAYERS or not self.everywhere)):
            return False
        if self.view.dtype(node.outputs[0]) not in (None, np.dtype(np.float32)):
            return False
        if (
            node.op == "AveragePool"
        ):  # ONNX Runtime does not load the one with dilations, and counts wrongly in the other
            ceiled = node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0)
            return "dilations" not in node.attrs and not ceiled
        if node.op == "Split":  # fused only if all of its outputs are quantized
            return all(t.outputs or self.view.is_output(t) for t in node.outputs)
        if node.op == "Resize":
            return bool(node.attrs.get("mode", "nearest") == "nearest")
        if node.op == "MaxPool":
            return len([t for t in node.outputs if t.name]) == 1
        if node.op == "HardSigmoid" and node.op not in rules.own_scale:
            # worth it, and safe from ONNX Runtime's merging of Q/DQ pairs, only as a gate
            if node.attrs.get("alpha", 0.2) <= 0 or not 0 <= node.attrs.get("beta", 0.5) <= 1:
                return False
            reader = self.view.only_consumer(node.outputs[0])
            return reader is not None and reader.op == "Mul" and any(t is node.inputs[0] for t in reader.inputs)
        return True

    def gate(self, tensor: gs.Tensor) -> Gate | None:
        """Return ``x·g(x)`` if that, with a Sigmoid or HardSigmoid g, is all that is made of the tensor."""
        readers = list(tensor.outputs)
        gates = [r for r in readers if r.op in ("Sigmoid", "HardSigmoid") and is_standard(r)]
        if len(readers) != 2 or len(gates) != 1 or self.view.is_output(tensor):
            return None
        product = self.view.only_consumer(gates[0].outputs[0])
        if product is None or product.op != "Mul" or not any(product is r for r in readers):
            return None
        if gates[0].op == "Sigmoid":
            return lambda x: x / (1 + np.exp(-np.clip(x, -80, 80)))
        alpha, beta = float(gates[0].attrs.get("alpha", 0.2)), float(gates[0].attrs.get("beta", 0.5))
        return lambda x: x * np.clip(alpha * x + beta, 0, 1)

    def root(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor whose values these are: operators that keep the scale only move or choose values."""
        while (node := self.view.producer(tensor)) is not None and id(node) in self._keeps:
            tensor = node.inputs[0]
        return tensor

    @cached_property
    def _keeps(self) -> set[int]:
        return {id(node) for node in self.carried if node.op in self.target.operators.same_scale}

    def data_inputs(self, node: gs.Node) -> list[gs.Tensor]:
        """Return the inputs that carry values, not shapes or axes."""
        if node.op in ("Add", "Mul", "Concat", "Sub", "Div", "MatMul"):
            return list(node.inputs)
        return list(node.inputs[:1])

    def refusal(self, node: gs.Node, slot: int) -> str:
        """Return why the weight at an input stays as it is, "" if it need not."""
        tensor = node.inputs[slot]
        if not isinstance(tensor, gs.Constant):
            return "its weight is computed at run time"
        if reason := self._unfit(tensor):
            return reason
        tied = self.sharing.of(tensor)
        return f"its weight is shared with '{tied.held}', which keeps it in float" if tied and tied.held else ""

    def _unfit(self, tensor: gs.Constant) -> str:
        """Return why an initializer stays as it is, "" if it need not."""
        if getattr(tensor, "overridable", False):
            return "its weight is also an input, so the caller may override it"
        if np.dtype(tensor.dtype) != np.float32:
            return f"its weight is {type_name(tensor.dtype)}"
        if prod(tensor.shape) < SMALL:
            return f"its weight has only {prod(tensor.shape)} elements"
        if id(tensor) in self._spared:
            return f"its weight has only {prod(tensor.shape)} elements: it is one of the smallest, {SPARED:.0%} of all"
        return ""

    @cached_property
    def _spared(self) -> set[int]:
        """The ids of the weights that are left in float: the smallest, of equal ones the first, in all that share."""
        tensors = {id(n.inputs[s]): n.inputs[s] for n in self.view.nodes for s in weight_slots(n)}
        budget, spared = self._share * sum(prod(t.shape) for t in tensors.values()), set()
        for key, tensor in sorted(tensors.items(), key=lambda each: prod(each[1].shape)):
            budget -= prod(tensor.shape)
            if budget < 0:
                break
            spared.add(key)
        return spared

    def _is_layer(self, node: gs.Node) -> bool:
        value = self.view.value(node.inputs[1]) if len(node.inputs) > 1 else None
        if value is None or value.dtype != np.float32 or getattr(node.inputs[1], "overridable", False):
            return False
        if self.view.value(node.inputs[0]) is not None:
            return False
        if node.op == "Gemm":
            plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
            return plain and not node.attrs.get("transA", 0)
        return node.op == "Conv" or value.ndim == 2

    def _stays(self, node: gs.Node, slot: int) -> bool:
        """Whether a reader of a weight needs it in float."""
        if not self.wanted(node) or not is_standard(node):
            return True
        tensor = node.inputs[slot]
        if not isinstance(tensor, gs.Constant):
            return False
        return slot not in weight_slots(node) or bool(self._unfit(tensor))

    def _agrees(self, node: gs.Node) -> bool:
        """Whether nothing else that reads the layer's weight keeps it from being integers."""
        tied = self.sharing.layer(node)
        return tied is None or (not tied.held and any(node is each for each in tied.layers))

    def _on_tokens(self, node: gs.Node) -> bool:
        """MatMul on (batch, sequence, features): outliers come and go, so ranges are taken at run time."""
        if "dynamic" not in self.target.integers.forms:
            return False
        shape = self.view.shape(node.inputs[0])
        return node.op == "MatMul" and (shape is None or len(shape) >= 3)

    def _bias_is_known(self, node: gs.Node) -> bool:
        bias = bias_tensor(node)
        return bias is None or self._is_row(self.view.value(bias), node)

    def _is_row(self, bias: NDArray[np.generic] | None, node: gs.Node) -> bool:
        """Whether the bias is one value, or one per output channel, and not one per row of a Gemm."""
        weight = self.view.value(node.inputs[1])
        if bias is None or weight is None:
            return False
        outputs = weight.shape[0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1]
        return bias.size == 1 or bias.shape in ((outputs,), (1, outputs))

    def weight(self, node: gs.Node) -> gs.Tensor:
        """Return what a layer multiplies by: the initializer, however it is handed on, or what is computed."""
        found = read_by(node)
        return node.inputs[1] if found is None else found.constant

    def matrix(self, node: gs.Node) -> NDArray[np.float32]:
        """Return the weight of a Gemm or MatMul as (inputs, outputs)."""
        value = np.asarray(self.view.value(node.inputs[1]), np.float32)
        return value.T if node.attrs.get("transB", 0) else value

    def inside(self, node: gs.Node) -> NDArray[np.float64] | None:
        """Return how often each tap of a Conv sees the input and no padding, None for other layers."""
        if node.op != "Conv":
            return None
        kernel = tuple(int(size) for size in node.inputs[1].shape[2:])
        return shares_inside(node, kernel, self.view.shape(node.inputs[0]))

    def bias_add(self, node: gs.Node) -> gs.Node | None:
        """Return the Add of a constant vector that follows a MatMul."""
        reader = self.view.only_consumer(node.outputs[0]) if node.op == "MatMul" else None
        if reader is None or reader.op != "Add" or self.everywhere:
            return None
        other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
        value = self.view.value(other)
        if value is None or value.ndim != 1 or value.dtype != np.float32 or not self._is_row(value, node):
            return None
        return reader

    def tail(self, node: gs.Node) -> gs.Node:
        """Return the last node of a layer, or of an operator with a scale of its own: the bias Add of a MatMul and a
        Relu or Clip belong to it, since kernels that quantize what they make do what these do.
        """
        last = self.bias_add(node) or node
        if node.op in self.target.operators.same_scale:
            return last
        reader = self.view.only_consumer(last.outputs[0])
        if reader is not None and reader.op in ("Relu", "Clip") and is_standard(reader):
            low, high = self.view.limits(reader)
            if low is not None and low <= 0 < high:
                return reader
        return last

    def _head(self, node: gs.Node) -> gs.Node:
        """Return the node whose tail this one is, or itself."""
        maker = self.view.producer(node.inputs[0]) if node.op in ("Relu", "Clip") else None
        return maker if maker is not None and self.tail(maker) is node else node

    def within_clip(self, tail: gs.Node, affine: Affine) -> Affine:
        """Keep the range inside the Clip, and its zero point at 0 after Relu: only then it is fused."""
        if tail.op not in ("Relu", "Clip"):
            return affine
        low, high = self.view.limits(tail)
        if low == 0:
            affine = replace(affine, scale=affine.high / 255, zero_point=0)
        if affine.high > high:
            affine = replace(fixed(affine.low, high * (1 - 1e-6)), signed=affine.signed)
        return affine
