"""``clean``: take out what exporters leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import codec, edit
from onnxsqueeze.calibration import Statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Pass, Site, Skip
from onnxsqueeze.errors import ModelError
from onnxsqueeze.runtime import Session
from onnxsqueeze.view import View, is_standard, key_of
from onnxsqueeze.weights import peek

__all__ = ["Clean"]

Array = NDArray[np.generic]

LINEAR = ("Conv", "ConvTranspose", "Gemm")
NOT_FOLDED = ("Constant", "QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "Bernoulli",
              "RandomNormalLike", "RandomUniformLike", "Multinomial")  # fmt: skip


@dataclass(frozen=True)
class Clean(Pass):
    """Rewrite the graph without changing its answers, so that later passes see plain layers.

    * ``Constant`` nodes become initializers; ``Identity`` and inference ``Dropout`` vanish.
    * Nodes that read constants alone are evaluated, unless the result is larger than what it replaces.
    * ``BatchNormalization(W·x + b)`` becomes ``(s·W)·x + s·(b − μ) + β`` with ``s = γ/√(σ² + ε)``; in the same way
      ``Add`` and ``Mul`` by a constant per channel go into the Conv, ConvTranspose or Gemm before them.
    """

    name: ClassVar[str] = "clean"
    summary: ClassVar[str] = "fold constants, BatchNormalization, scales and shifts; remove Identity and dead nodes"
    cleans_first: ClassVar[bool] = False
    float_only: ClassVar[bool] = False
    repeats: ClassVar[bool] = True

    fold_limit: int = 1 << 14
    """The largest constant, in bytes, that folding may make beyond what it replaces."""

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        """Yield what can be rewritten now; the engine asks again until there is nothing left."""
        folded = _foldable(view, self.fold_limit)
        for node in view.nodes:
            key = key_of(node)
            if not is_standard(node) or not key:
                continue
            if node.op == "Constant" and "value" in node.attrs:
                if not view.is_output(node.outputs[0]):
                    yield Site(key, "made an initializer")
            elif key in folded:
                yield Site(key, "folded to a constant", {"op": node.op}, work=folded[key])
            elif node.op in ("Identity", "Dropout"):
                if _vanishes(view, node):
                    yield Site(key, f"{node.op} removed", {"op": node.op})
            elif node.op in ("BatchNormalization", "Add", "Mul"):
                yield from _into_linear(view, node)

    def apply(self, site: Site, graph: Graph) -> None:
        """Rewrite one node."""
        node, scope = edit.find(graph, site.key)
        output = node.outputs[0]
        if node.op == "Constant":
            values = node.attrs["value"]._values
            node.outputs.clear()
            edit.redirect(output, gs.Constant(output.name, values))
            edit.remove(scope, node)
        elif isinstance(site.work, np.ndarray):
            node.outputs.clear()
            edit.redirect(output, gs.Constant(output.name, site.work))
            edit.remove(scope, node)
        elif node.op in ("Identity", "Dropout"):
            _remove_identity(node, scope)
        else:
            _fold_linear(graph, scope, node, site)


def _vanishes(view: View, node: gs.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if node.op == "Dropout":
        if len(node.outputs) > 1 and (node.outputs[1].outputs or view.is_output(node.outputs[1])):
            return False
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if training is not None and training.name:
            value = view.value(training)
            if value is None or bool(np.any(value)):
                return False
    if not view.is_output(output):
        return True
    # the output keeps its name, so the producer must be able to take it over
    producer = view.producer(source)
    return producer is not None and view.scope(producer) is view.scope(node) and not view.is_output(source)


def _remove_identity(node: gs.Node, scope: Graph) -> None:
    source, output = node.inputs[0], node.outputs[0]
    is_output = any(output is t for t in scope.outputs)
    edit.remove(scope, node)
    if not is_output:
        edit.redirect(output, source)
        return
    producer = source.inputs[0]
    slot = next(i for i, t in enumerate(producer.outputs) if t is source)
    producer.outputs[slot] = output
    edit.redirect(source, output)


def _foldable(view: View, limit: int) -> dict[str, Array]:
    """Evaluate, in one ONNX Runtime session, the nodes that depend on constants alone; return the frontier's values."""
    known: dict[int, bool] = {}
    chosen: list[gs.Node] = []
    for node in view.nodes:
        outputs_bodies = any(isinstance(v, gs.Graph) for v in node.attrs.values())
        inputs = [t for t in node.inputs if t.name]
        constant = (
            is_standard(node) and node.op not in NOT_FOLDED and not outputs_bodies and bool(inputs)
            and all(known.get(id(t), view.constant(t) is not None) for t in inputs)
            and not any(view.is_output(t) for t in node.outputs)
        )  # fmt: skip
        if constant:
            size = [_bytes(view, t) for t in node.outputs if t.name]
            spare = sum(int(t._values.nbytes) for t in inputs if isinstance(t, gs.Constant) and len(t.outputs) == 1)
            constant = all(s is not None and s <= spare + limit for s in size) and _cheap(node)
        for tensor in node.outputs:
            known[id(tensor)] = constant
        if constant:
            chosen.append(node)
    if not chosen:
        return {}
    inside = {id(node) for node in chosen}
    frontier = [n for n in chosen if len(n.outputs) == 1 and any(id(c) not in inside for c in n.outputs[0].outputs)]
    return _evaluate(view, chosen, frontier) if frontier else {}


def _cheap(node: gs.Node) -> bool:
    """A Cast to a wider type would only make the file larger; whoever needs its value looks through it."""
    if node.op != "Cast" or not isinstance(node.inputs[0], gs.Constant):
        return True
    source = np.dtype(node.inputs[0].dtype)
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    return target.itemsize <= source.itemsize or prod(node.inputs[0].shape) <= 16


def _bytes(view: View, tensor: gs.Tensor) -> int | None:
    shape, dtype = view.shape(tensor), view.dtype(tensor)
    if shape is None or dtype is None or not all(isinstance(d, int) for d in shape):
        return None
    return prod(int(d) for d in shape if isinstance(d, int)) * dtype.itemsize


def _evaluate(view: View, nodes: list[gs.Node], frontier: list[gs.Node]) -> dict[str, Array]:
    keys = {key_of(node) for node in nodes}
    skeleton = codec.encode(view.graph, skeleton=True)
    found: dict[str, onnx.NodeProto] = {}
    stack = [skeleton.graph]
    while stack:
        graph = stack.pop()
        for proto in graph.node:
            name = next((o for o in proto.output if o), "")
            if name in keys:
                found[name] = proto
            stack.extend(a.g for a in proto.attribute if a.type == onnx.AttributeProto.GRAPH)
    constants = {t.name: t for n in nodes for t in n.inputs if isinstance(t, gs.Constant) and t.name}
    model = onnx.ModelProto(ir_version=max(skeleton.ir_version, 4), opset_import=skeleton.opset_import)
    model.graph.name = "constants"
    model.graph.node.extend(found[key_of(node)] for node in nodes)
    for name, constant in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(peek(constant), name))
    names = [key_of(node) for node in frontier]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        values = Session(model, optimize="none", threads=1).run({}, names)
    except ModelError:
        return {}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _into_linear(view: View, node: gs.Node) -> Iterator[Site | Skip]:
    """Yield a site if the node scales or shifts the channels of a linear layer that nobody else reads."""
    key = key_of(node)
    slot = next((i for i, t in enumerate(node.inputs[:2]) if view.producer(t) is not None), None)
    linear = view.producer(node.inputs[slot]) if slot is not None else None
    if slot is None or linear is None or linear.op not in LINEAR or not is_standard(linear):
        return
    if node.op == "BatchNormalization" and slot != 0:
        return
    if view.only_consumer(linear.outputs[0]) != node or view.scope(linear) is not view.scope(node):
        return
    weight = view.value(linear.inputs[1])
    bias = view.value(linear.inputs[2]) if len(linear.inputs) > 2 and linear.inputs[2].name else None
    if weight is None or weight.dtype.kind != "f":
        return
    if len(linear.inputs) > 2 and linear.inputs[2].name and bias is None:
        return
    if linear.op == "Gemm" and (linear.attrs.get("alpha", 1.0) != 1.0 or linear.attrs.get("beta", 1.0) != 1.0):
        return
    channels = _channels(linear, weight)
    if len(linear.inputs[1].outputs) > 1:
        yield Skip(key, "the weight before it is shared with another layer")
        return
    if node.op == "BatchNormalization":
        if node.attrs.get("training_mode", 0) or len([t for t in node.outputs if t.name]) > 1:
            return
        parts = [view.value(t) for t in node.inputs[1:5]]
        if any(p is None or p.size != channels for p in parts):
            return
        gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parts)
        factor = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        shift = beta - mean * factor
    else:
        other = view.value(node.inputs[1 - slot])
        rank = weight.ndim if linear.op != "Gemm" else 2
        vector = None if other is None else _per_channel(other, channels, rank)
        if vector is None:
            return
        factor, shift = (np.ones(channels), vector) if node.op == "Add" else (vector, np.zeros(channels))
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return
    yield Site(key, f"{node.op} folded into {linear.op}", {"op": node.op, "into": key_of(linear)}, work=(factor, shift))


def _channels(linear: gs.Node, weight: Array) -> int:
    if linear.op == "ConvTranspose":
        return int(weight.shape[1]) * int(linear.attrs.get("group", 1))
    if linear.op == "Gemm":
        return int(weight.shape[0 if linear.attrs.get("transB", 0) else 1])
    return int(weight.shape[0])


def _per_channel(value: Array, channels: int, rank: int) -> NDArray[np.float64] | None:
    """Return the value as one number per channel if it broadcasts over (N, C, …) of this rank without growing it."""
    if value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(d != 1 for axis, d in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), (channels,)).copy()


def _fold_linear(graph: Graph, scope: Graph, node: gs.Node, site: Site) -> None:
    factor, shift = site.work  # type: ignore[misc]
    view = View(graph)
    linear = next(n for t in node.inputs for n in t.inputs if key_of(n) == site.detail["into"])
    weight = np.asarray(view.value(linear.inputs[1]))
    bias = view.value(linear.inputs[2]) if len(linear.inputs) > 2 and linear.inputs[2].name else None
    old = np.zeros(len(factor)) if bias is None else np.broadcast_to(bias.astype(np.float64).reshape(-1), factor.shape)
    new_bias = (old * factor + shift).astype(weight.dtype)
    if not np.all(factor == 1.0):
        scaled = weight.astype(np.float64) * _along(linear, weight, factor)
        linear.inputs[1] = edit.constant(graph, linear.inputs[1].name + "_folded", scaled.astype(weight.dtype))
    hint = linear.inputs[2].name if bias is not None else f"{linear.inputs[1].name}_bias"
    constant = edit.constant(graph, hint, new_bias)
    if len(linear.inputs) > 2:
        linear.inputs[2] = constant
    else:
        linear.inputs.append(constant)
    output = node.outputs[0]
    edit.remove(scope, node)
    linear.outputs[0] = output


def _along(linear: gs.Node, weight: Array, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the factor per output channel in a shape that multiplies the weight."""
    if linear.op == "Gemm":
        return factor[:, None] if linear.attrs.get("transB", 0) else factor
    ones = (1,) * (weight.ndim - 2)
    if linear.op == "Conv":
        return factor.reshape(-1, 1, *ones)
    group = int(linear.attrs.get("group", 1))  # ConvTranspose: (C_in, C_out/group, …)
    per_group = factor.reshape(group, 1, -1)
    return np.repeat(per_group, weight.shape[0] // group, axis=1).reshape(weight.shape[0], -1, *ones)
