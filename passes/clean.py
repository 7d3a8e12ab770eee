"""``clean``: take out what exporters leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.linear.bias import bias_tensor, bias_value, set_bias
from onnxsqueeze.plugin import Graph, Pass, Site, Skip, Statistics, View, Weight, edit, is_standard, key_of, subgraphs
from onnxsqueeze.techniques.canonical import calls
from onnxsqueeze.techniques.canonical.folding import fold, growth
from onnxsqueeze.techniques.canonical.parts import parts

__all__ = ["Clean"]

Array = NDArray[np.generic]
Vector = NDArray[np.float64]
Work = Callable[[Graph, Graph, gs.Node], None]
"""What rewrites a node of a graph, given with the graph that holds it."""

LINEAR = ("Conv", "ConvTranspose", "Gemm")
FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Clean(Pass[Work]):
    """Rewrite the graph without changing its answers, so that later passes see plain layers.

    * ``Constant`` nodes become initializers; ``Identity``, inference ``Dropout`` and what no output needs vanish.
    * Calls of local functions that hold layers with weights are written out; other functions stay.
    * Nodes that read constants alone are evaluated, unless the result is larger than what it replaces; weights that
      are cut out of one constant become constants of their own.
    * ``BatchNormalization(W·x + b)`` becomes ``(s·W)·x + s·(b − μ) + β`` with ``s = γ/√(σ² + ε)``; in the same way
      ``Add`` and ``Mul`` by a constant per channel go into the Conv, ConvTranspose or Gemm before them.
    """

    name: ClassVar[str] = "clean"
    summary: ClassVar[str] = "fold constants, BatchNormalization, scales and shifts; remove Identity and dead nodes"
    cleans_first: ClassVar[bool] = False
    float_only: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    fold_limit: int = 1 << 14
    """The largest constant, in bytes, that folding may make beyond what it replaces."""

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Work] | Skip]:
        """Yield what can be rewritten now; the engine asks again until there is nothing left."""
        folded = fold(view, self.fold_limit, view.graph.index.folded)
        alive, cut = edit.alive(view.graph), parts(view)
        changed: set[int] = set()
        gone: set[int] = set()
        for node in view.nodes:
            key = key_of(node)
            if not key or id(view.scope(node)) in gone:
                continue
            site: Site[Work] | Skip | None = None
            if id(node) not in alive:
                site = Site(key, f"{node.op} removed, which no output needs", work=_remove_dead)
                gone.update(map(id, _inside(node)))
            elif (refusal := calls.refusal(view, node)) is not None:
                words = f"{node.op}, a local function that holds layers, written out"
                site = Skip(key, refusal) if refusal else Site(key, words, work=calls.write_out)
            elif not is_standard(node):
                continue
            elif key in folded:
                work = partial(_put_folded, values=folded[key])
                site = Site(key, f"{node.op} folded to a constant", work=work)
            elif key in cut:
                site = Site(key, f"{node.op} of a weight made a constant", work=partial(_put_parts, values=cut[key]))
            elif node.op == "Constant":
                site = _as_initializer(view, node)
            elif not any(id(source) in changed for tensor in node.inputs for source in tensor.inputs):
                if node.op in ("Identity", "Dropout"):
                    site = Site(key, f"{node.op} removed", work=_remove_identity) if _vanishes(view, node) else None
                elif node.op in ("BatchNormalization", "Add", "Mul"):
                    site = _into_linear(view, node)
            if site is not None:
                yield site
            if isinstance(site, Site):
                changed.add(id(node))

    def apply(self, site: Site[Work], graph: Graph) -> None:
        """Rewrite one node."""
        node, scope = edit.find(graph, site.key)
        site.work(graph, scope, node)


# ------------------------------------------------------------------------------------------------ nodes that vanish


def _inside(node: gs.Node) -> Iterator[Graph]:
    for body in subgraphs(node):
        yield body
        for inner in body.nodes:
            yield from _inside(inner)


def _as_initializer(view: View, node: gs.Node) -> Site[Work] | None:
    output = node.outputs[0]
    values = node.attrs["value"]._values if "value" in node.attrs else view.value(output)
    if values is None or view.is_output(output):
        return None
    return Site(key_of(node), "Constant made an initializer", work=partial(_put_constant, values=values))


def _put_constant(graph: Graph, scope: Graph, node: gs.Node, values: Array | Weight) -> None:
    output = node.outputs[0]
    edit.remove(scope, node)
    edit.redirect(output, gs.Constant(output.name, values))


def _put_folded(graph: Graph, scope: Graph, node: gs.Node, values: Array | Weight) -> None:
    graph.index.folded += max(growth(node, int(values.nbytes)), 0)
    _put_constant(graph, scope, node, values)


def _put_parts(graph: Graph, scope: Graph, node: gs.Node, values: list[Weight]) -> None:
    outputs = list(node.outputs)
    edit.remove(scope, node)
    for output, value in zip(outputs, values, strict=True):
        edit.redirect(output, gs.Constant(output.name, value))


def _remove_dead(graph: Graph, scope: Graph, node: gs.Node) -> None:
    edit.remove(scope, node)


def _vanishes(view: View, node: gs.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if node.op == "Dropout":
        if any(tensor.outputs or view.is_output(tensor) for tensor in node.outputs[1:]):
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


def _remove_identity(graph: Graph, scope: Graph, node: gs.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    edit.remove(scope, node)
    if not View(graph).is_output(output):
        edit.redirect(output, source)
        return
    producer = source.inputs[0]
    slot = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
    producer.outputs[slot] = output
    edit.redirect(source, output)


# ------------------------------------------------------------------------------------------------ scales and shifts


@dataclass(frozen=True)
class _Scaling:
    """``factor·y + shift`` per channel of a linear layer's output y."""

    factor: Vector
    shift: Vector


def _into_linear(view: View, node: gs.Node) -> Site[Work] | Skip | None:
    """Return a site if the node scales or shifts the channels of a linear layer that nobody else reads."""
    slots = range(1 if node.op == "BatchNormalization" else 2)
    slot = next((i for i in slots if _is_linear(view.producer(node.inputs[i]))), None)
    linear = view.producer(node.inputs[slot]) if slot is not None else None
    if slot is None or linear is None:
        return None
    weight = view.value(linear.inputs[1])
    if weight is None or weight.dtype not in FLOATS:
        return None
    if view.only_consumer(linear.outputs[0]) is None or view.scope(linear) is not view.scope(node):
        return None
    channels = _channels(linear, weight)
    if not _bias_is_a_vector(view, linear, channels):
        return None
    if node.op == "BatchNormalization":
        scaling = _normalization(view, node, channels)
    else:
        scaling = _elementwise(view, node, node.inputs[1 - slot], channels, 2 if linear.op == "Gemm" else weight.ndim)
    if scaling is None or not (np.isfinite(scaling.factor).all() and np.isfinite(scaling.shift).all()):
        return None
    with np.errstate(over="ignore"):
        if not np.isfinite((np.abs(weight).max(initial=0) * np.abs(scaling.factor).max()).astype(weight.dtype)):
            return None
        if not np.isfinite((bias_value(view, linear) * scaling.factor + scaling.shift).astype(weight.dtype)).all():
            return None
    if not view.alone(linear.inputs[1]) and np.any(scaling.factor != 1):
        return Skip(key_of(node), "the weight before it is shared with another layer")
    detail: dict[str, object] = {"into": key_of(linear)}
    return Site(key_of(node), f"{node.op} folded into {linear.op}", detail, work=partial(_fold_linear, scaling=scaling))


def _is_linear(node: gs.Node | None) -> bool:
    return node is not None and node.op in LINEAR and is_standard(node)


def _bias_is_a_vector(view: View, linear: gs.Node, channels: int) -> bool:
    """Whether the bias is absent, or constant with one number (per channel); a Gemm may add a whole matrix."""
    if linear.op == "Gemm" and linear.attrs.get("beta", 1.0) != 1.0:
        return False
    bias = bias_tensor(linear)
    if bias is None:
        return True
    value = view.value(bias)
    return value is not None and (value.size == 1 or (value.size == channels and value.shape[-1] == channels))


def _normalization(view: View, node: gs.Node, channels: int) -> _Scaling | None:
    if node.attrs.get("training_mode", 0) or not node.attrs.get("spatial", 1) or any(t.name for t in node.outputs[1:]):
        return None
    parts = [view.value(tensor) for tensor in node.inputs[1:5]]
    vectors = [part.astype(np.float64) for part in parts if part is not None and part.size == channels]
    if len(vectors) < 4:
        return None
    gamma, beta, mean, variance = vectors
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return _Scaling(factor, beta - mean * factor)


def _elementwise(view: View, node: gs.Node, other: gs.Tensor, channels: int, rank: int) -> _Scaling | None:
    """Return what Add or Mul does if ``other`` broadcasts over (N, C, …) as one number per channel."""
    value = view.value(other)
    if value is None or value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    vector: Vector = np.broadcast_to(value.astype(np.float64).reshape(-1), (channels,)).copy()
    return _Scaling(np.ones(channels), vector) if node.op == "Add" else _Scaling(vector, np.zeros(channels))


def _channels(linear: gs.Node, weight: Array) -> int:
    if linear.op == "ConvTranspose":
        return int(weight.shape[1]) * int(linear.attrs.get("group", 1))
    return int(weight.shape[1 if linear.op == "Gemm" and not linear.attrs.get("transB", 0) else 0])


def _fold_linear(graph: Graph, scope: Graph, node: gs.Node, scaling: _Scaling) -> None:
    view = View(graph)
    linear: gs.Node = next(p for tensor in node.inputs for p in tensor.inputs if _is_linear(p))
    weight, bias = np.asarray(view.value(linear.inputs[1])), bias_tensor(linear)
    name = linear.inputs[1].name
    shift = (bias_value(view, linear) * scaling.factor + scaling.shift).astype(weight.dtype)
    set_bias(linear, edit.constant(graph, f"{name}_bias" if bias is None else bias.name, shift))
    if np.any(scaling.factor != 1):
        scaled = weight.astype(np.float64) * _along(linear, weight, scaling.factor)
        linear.inputs[1] = edit.constant(graph, f"{name}_folded", scaled.astype(weight.dtype))
    output = node.outputs[0]
    edit.remove(scope, node)
    linear.outputs[0] = output


def _along(linear: gs.Node, weight: Array, factor: Vector) -> Vector:
    """Return the factor per output channel in a shape that multiplies the weight."""
    if linear.op == "Gemm":
        return factor[:, None] if linear.attrs.get("transB", 0) else factor
    ones = (1,) * (weight.ndim - 2)
    if linear.op == "Conv":
        return factor.reshape(-1, 1, *ones)
    group = int(linear.attrs.get("group", 1))  # ConvTranspose: (C_in, C_out/group, …)
    return np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0).reshape(weight.shape[0], -1, *ones)
