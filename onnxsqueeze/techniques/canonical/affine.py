"""Scales and shifts in front of linear layers: folded into those that read them, or put in the order that can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.contract.plan import Site
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor, bias_value, set_bias
from onnxsqueeze.techniques.canonical.chains import ends_chain
from onnxsqueeze.techniques.canonical.scalars import adds_no_axes, fits, scalar_factor

__all__ = ["forward"]

Vector = NDArray[np.float64]
Work = Callable[[Graph, Graph, gs.Node], None]


@dataclass(frozen=True)
class _Affine:
    """``factor`` and ``shift`` of the channels that the readers contract; one of them is neutral."""

    factor: Vector | None
    shift: Vector | None
    slot: int


def forward(view: View, node: gs.Node, taken: set[int]) -> Site[Work] | None:
    """Return a site if the node scales or shifts what only linear layers read."""
    output = node.outputs[0]
    slot = next((i for i in (0, 1) if view.value(node.inputs[i]) is None), None)
    if slot is None or (node.op == "Div" and slot == 1) or (node.op == "Sub" and slot == 1) or view.is_output(output):
        return None
    constant = view.value(node.inputs[1 - slot])
    if constant is None or constant.dtype != np.float32 or not np.isfinite(constant).all():
        return None
    if ends_chain(view, node, slot):
        return None
    readers = view.consumers(output)
    if not readers or any(id(r) in taken or not _linear(view, r, output) for r in readers):
        return _exchangeable(view, node, slot, constant, taken)
    additive = node.op in ("Add", "Sub")
    if additive and any(_padded(r) for r in readers):
        return _exchangeable(view, node, slot, constant, taken)
    channels = {_contracted(view, r) for r in readers}
    if len(channels) > 1 or not _keeps_shape(view, node.inputs[slot], constant, channels, readers[0]):
        return None
    vector = _per_channel(constant, channels.pop(), readers[0])
    if vector is None or any(view.scope(r) is not view.scope(node) for r in readers):
        return None
    if node.op == "Div":
        if not vector.all():
            return None
        vector = 1 / vector
    if not all(_holds(view, reader, vector, additive) for reader in readers):
        return None
    taken.update(id(r) for r in readers)
    affine = _Affine(None, -vector if node.op == "Sub" else vector, slot) if additive else _Affine(vector, None, slot)
    return Site(
        key_of(node),
        f"{node.op} folded into the next layer",
        {"op": node.op},
        work=partial(_fold_forward, affine=affine),
    )


def _exchangeable(
    view: View, node: gs.Node, slot: int, constant: NDArray[np.generic], taken: set[int]
) -> Site[Work] | None:
    """Return a site where Add(Mul(x, s), t) in front of padded layers had better be Mul(Add(x, t/s), s)."""
    if node.op != "Add" or constant.size != 1 or id(node) in taken:
        return None
    scale = view.producer(node.inputs[slot])
    if scale is None or scale.op != "Mul" or view.only_consumer(scale.outputs[0]) != node:
        return None
    factor = scalar_factor(view, scale, _variable_input(view, scale))
    if factor is None:
        return None
    shift = view.scalar(node.inputs[1 - slot])
    if shift is None or not fits(factor, shift, shift / factor):
        return None
    x = _variable_input(view, scale)
    if not adds_no_axes(view, scale, x) or not adds_no_axes(view, node, node.inputs[slot]):
        return None
    readers = view.consumers(node.outputs[0])
    if not readers or not all(_linear(view, r, node.outputs[0]) for r in readers) or view.is_output(node.outputs[0]):
        return None
    return Site(key_of(node), "exchanged the order of scale and shift", work=_exchange)


def _variable_input(view: View, node: gs.Node) -> gs.Tensor:
    return node.inputs[0] if view.value(node.inputs[0]) is None else node.inputs[1]


def _exchange(graph: Graph, scope: Graph, add: gs.Node) -> None:
    view = View(graph)
    source = _variable_input(view, add)
    mul = source.inputs[0]
    x = _variable_input(view, mul)
    factor = next(view.scalar(t) for t in mul.inputs if t is not x)
    shift = next(view.scalar(t) for t in add.inputs if t is not source)
    assert factor is not None and shift is not None
    name = add.outputs[0].name
    moved = edit.constant(graph, f"{name}_shift", np.float32(shift / factor))
    scale = edit.constant(graph, f"{name}_scale", np.float32(factor))
    shifted = edit.insert(graph, scope, "Add", [x, moved], f"{name}_shifted", before=add)
    edit.replace(graph, scope, add, "Mul", [shifted, scale])


def _linear(view: View, node: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether the node is a layer that reads the tensor as its data alone and whose weight it alone reads."""
    if node.op not in ("Conv", "Gemm", "MatMul") or not is_standard(node) or node.inputs[0] is not tensor:
        return False
    if any(t is tensor for t in node.inputs[1:]) or not view.alone(node.inputs[1]):
        return False
    weight = view.value(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or (node.op != "Conv" and weight.ndim != 2):
        return False
    bias = bias_tensor(node)
    if bias is not None and view.value(bias) is None:
        return False
    if node.op == "Gemm":
        return not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
    return True


def _padded(node: gs.Node) -> bool:
    """MatMul has no bias to take a shift, so it counts as padded."""
    if node.op != "Conv":
        return bool(node.op == "MatMul")
    return any(node.attrs.get("pads") or ()) or str(node.attrs.get("auto_pad") or "").startswith("SAME")


def _contracted(view: View, node: gs.Node) -> int:
    weight = view.value(node.inputs[1])
    assert weight is not None
    if node.op == "Conv":
        return int(weight.shape[1]) * int(node.attrs.get("group", 1))
    return int(weight.shape[1 if node.attrs.get("transB", 0) else 0])


def _keeps_shape(
    view: View, source: gs.Tensor, constant: NDArray[np.generic], channels: set[int], reader: gs.Node
) -> bool:
    """Whether the constant neither adds axes to the source nor spreads a single channel over several."""
    if constant.ndim == 0:
        return True
    shape = view.shape(source)
    if shape is None or len(shape) < constant.ndim:
        return False
    return constant.size == 1 or {shape[1 if reader.op == "Conv" else -1]} == channels


def _per_channel(constant: NDArray[np.generic], channels: int, reader: gs.Node) -> Vector | None:
    if constant.size == 1:
        return np.full(channels, float(constant.reshape(-1)[0]))
    axis = 1 if reader.op == "Conv" else -1
    rank = reader.inputs[1].values.ndim if reader.op == "Conv" else constant.ndim
    shape = (1,) * (rank - constant.ndim) + constant.shape
    wanted = [1] * len(shape)
    wanted[axis] = channels
    return constant.astype(np.float64).reshape(-1) if tuple(wanted) == shape else None


def _holds(view: View, reader: gs.Node, vector: Vector, additive: bool) -> bool:
    """Return whether float32 holds what the weight, or for a shift the bias, of a reader would become."""
    weight = np.abs(np.asarray(view.value(reader.inputs[1]), np.float64))
    size = np.abs(vector)
    most = float(weight.max(initial=0)) * float(size.max(initial=0))
    if additive:
        bias = float(np.abs(bias_value(view, reader)).max(initial=0))
        return fits(bias + most * prod(weight.shape[1:] if reader.op == "Conv" else weight.shape))
    least = float(size[size > 0].min(initial=1.0)) * float(weight.max(initial=0))
    return fits(most, least)


def _fold_forward(graph: Graph, scope: Graph, node: gs.Node, affine: _Affine) -> None:
    view = View(graph)
    source, output = node.inputs[affine.slot], node.outputs[0]
    for reader in list(output.outputs):
        weight = np.asarray(view.value(reader.inputs[1]), np.float64)
        if affine.factor is not None:
            scaled = (weight * _along_inputs(reader, weight, affine.factor)).astype(np.float32)
            reader.inputs[1] = edit.constant(graph, f"{reader.inputs[1].name}_scaled", scaled)
            continue
        assert affine.shift is not None
        moved = (weight * _along_inputs(reader, weight, affine.shift)).sum(axis=_input_axes(reader, weight))
        bias = bias_tensor(reader)
        hint = f"{reader.inputs[1].name}_bias" if bias is None else bias.name
        shifted = (bias_value(view, reader) + moved).astype(np.float32)
        set_bias(reader, edit.constant(graph, f"{hint}_shifted", shifted))
    edit.remove(scope, node)
    edit.redirect(output, source)


def _along_inputs(node: gs.Node, weight: Vector, vector: Vector) -> Vector:
    """Return the vector over input channels in a shape that multiplies the weight."""
    if node.op != "Conv":
        return vector if node.attrs.get("transB", 0) else vector[:, None]
    group, ones = int(node.attrs.get("group", 1)), (1,) * (weight.ndim - 2)
    rows = np.repeat(vector.reshape(group, -1), len(weight) // group, axis=0)
    return rows.reshape(*weight.shape[:2], *ones)


def _input_axes(node: gs.Node, weight: Vector) -> tuple[int, ...]:
    if node.op != "Conv":
        return (1,) if node.attrs.get("transB", 0) else (0,)
    return tuple(range(1, weight.ndim))
