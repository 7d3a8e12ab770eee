"""Forms of float operators on which ONNX Runtime's CPU kernels are several times faster, at the same answers.

The factors are medians of one thread (ONNX Runtime 1.31, ``benchmarks/kernels.py``).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.objects import Graph

__all__ = ["bound", "is_inner_softmax", "is_masked_softmax", "is_normalized_sum", "spell_softmax", "write_as_sum"]

DEPTH = 64.0
"""A score that is masked comes to lie this far under the largest of its row: its exponential is no denormal number, and
nothing beside that of the largest."""
MASK = -1e3
"""What is added to a score to mask it is at most this."""
NEAR = 8
"""Nodes between a mask's constant and the scores."""


def is_normalized_sum(view: View, node: gs.Node) -> bool:
    """Return whether the node is an Add of two computed tensors that goes into a LayerNormalization.

    ONNX Runtime fuses the two to SkipLayerNormalization, whose kernel takes five times as long as Sum and
    LayerNormalization do.
    """
    if node.op != "Add" or not is_standard(node) or view.opset < 8 or view.dtype(node.outputs[0]) != np.float32:
        return False
    if any(view.value(t) is not None for t in node.inputs):
        return False
    return any(_normalizes(view, reader, node.outputs[0]) for reader in view.consumers(node.outputs[0]))


def _normalizes(view: View, node: gs.Node, tensor: gs.Tensor) -> bool:
    """Return whether a reader is a LayerNormalization, or the Sub with which a spelled-out one begins."""
    if node.op == "LayerNormalization":
        return True
    mean = view.producer(node.inputs[1]) if node.op == "Sub" and node.inputs[0] is tensor else None
    return mean is not None and mean.op == "ReduceMean" and mean.inputs[0] is tensor


def write_as_sum(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Rename the Add to Sum, which is the same of two tensors and is not fused."""
    node.op = "Sum"


def is_inner_softmax(view: View, node: gs.Node) -> bool:
    """Return whether the node is a Softmax over another axis than the last.

    ONNX Runtime moves that axis to the end and back, which takes five times as long as spelling it out.
    """
    if node.op != "Softmax" or not is_standard(node) or view.opset < 13:
        return False
    shape, axis = view.shape(node.inputs[0]), int(node.attrs.get("axis", -1))
    if shape is None or view.dtype(node.outputs[0]) != np.float32:
        return False
    behind = shape[axis % len(shape) + 1 :]
    return bool(behind) and any(size != 1 for size in behind)


def spell_softmax(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Replace Softmax(x) by ``exp(x − max x) / Σ exp(x − max x)`` over its axis."""
    x, axis, name = node.inputs[0], int(node.attrs.get("axis", -1)), node.outputs[0].name
    axes = edit.constant(graph, f"{name}_axis", np.array([axis], np.int64))
    peak = _peak(graph, scope, x, axis, node)
    under = edit.insert(graph, scope, "Sub", [x, peak], f"{name}_under_peak", before=node)
    powers = edit.insert(graph, scope, "Exp", [under], f"{name}_powers", before=node)
    total = edit.insert(graph, scope, "ReduceSum", [powers, axes], f"{name}_total", {"keepdims": 1}, before=node)
    edit.replace(graph, scope, node, "Div", [powers, total])


def is_masked_softmax(view: View, node: gs.Node) -> bool:
    """Return whether the node is a Softmax over scores some of which are masked by −∞ or a huge negative constant.

    The kernel computes denormal numbers for those, which takes four times as long.
    """
    if node.op != "Softmax" or not is_standard(node) or view.opset < 12:
        return False
    shape = view.shape(node.inputs[0])
    last = shape is not None and int(node.attrs.get("axis", 1)) in (-1, len(shape) - 1)
    if view.opset < 13 and not last:  # it takes all axes from there on together
        return False
    if view.dtype(node.outputs[0]) != np.float32:
        return False
    maker = view.producer(node.inputs[0])
    return maker is not None and maker.op in ("Add", "Where") and is_standard(maker) and _has_mask(view, maker)


def _has_mask(view: View, node: gs.Node) -> bool:
    """Return whether a constant like a mask is near; layers and other Softmaxes end the search."""
    level, seen = [node], {id(node)}
    for _ in range(NEAR):
        tensors = [t for n in level for t in n.inputs]
        for tensor in tensors:
            value = view.value(tensor)
            if value is not None and value.dtype == np.float32 and value.size and float(value.min()) <= MASK:
                return True
        made = [view.producer(t) for t in tensors]
        level = [n for n in made if n is not None and id(n) not in seen and n.op not in _ENDS and is_standard(n)]
        seen.update(id(n) for n in level)
    return False


_ENDS = ("MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization", "Einsum")


def bound(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Put ``max(x, max x − 64)`` over the axis in front of a Softmax of masked scores, wherever they lie.

    Each weight changes by less than e⁻⁶⁴ of the largest; rows in which everything is masked stay as they are.
    """
    x, axis = node.inputs[0], int(node.attrs.get("axis", -1))
    peak = _peak(graph, scope, x, axis, node)
    depth = edit.constant(graph, f"{x.name}_depth", np.float32(DEPTH))
    least = edit.insert(graph, scope, "Sub", [peak, depth], f"{x.name}_least", before=node)
    node.inputs[0] = edit.insert(graph, scope, "Max", [x, least], f"{x.name}_bounded", before=node)


def _peak(graph: Graph, scope: Graph, x: gs.Tensor, axis: int, node: gs.Node) -> gs.Tensor:
    if graph.opset < 18:
        return edit.insert(
            graph, scope, "ReduceMax", [x], f"{x.name}_peak", {"axes": [axis], "keepdims": 1}, before=node
        )
    axes = edit.constant(graph, f"{x.name}_peak_axis", np.array([axis], np.int64))
    return edit.insert(graph, scope, "ReduceMax", [x, axes], f"{x.name}_peak", {"keepdims": 1}, before=node)
