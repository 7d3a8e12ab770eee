"""Calls of local functions that hold layers: written out, so that passes see the layers; others stay calls."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.constants import constant_of, source
from onnxsqueeze.graph.functions import callee, calls, inline, obstacle
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, walk
from onnxsqueeze.ir.objects import Function, Graph

__all__ = ["refusal", "write_out"]

_LAYERS = ("Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def refusal(view: View, node: gs.Node) -> str | None:
    """Return why a call of a function that holds layers stays, "" if it is to be written out, None for other nodes."""
    function = callee(view.graph, node)
    if function is None or not _has_layer(view.graph, function, ()):
        return None
    inside = any(map(_is_weight, _constants(view.graph, function, ())))
    if not inside and not any(_is_weight(found[0]) for t in node.inputs if (found := source(t)) is not None):
        return None
    reason = obstacle(view.graph, function)
    if not reason and inside and sum(each is function for _, each in calls(view.graph)) > 1:
        reason = "its weights stand inside, and every call would get its own"
    return f"the local function it calls stays: {reason}" if reason else ""


def write_out(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Put what the function does in the place of the call."""
    function = callee(graph, node)
    assert function is not None
    inline(graph, scope, node, function)


def _has_layer(graph: Graph, function: Function, around: tuple[Function, ...]) -> bool:
    for node, _ in walk(function):
        if is_standard(node) and node.op in _LAYERS:
            return True
        called = callee(graph, node)
        if called is not None and called not in around and _has_layer(graph, called, (*around, function)):
            return True
    return False


def _constants(graph: Graph, function: Function, around: tuple[Function, ...]) -> Iterator[gs.Constant]:
    """Yield the constants that stand inside a function and those that it calls."""
    for node, _ in walk(function):
        for tensor in (*node.inputs, *node.outputs):
            constant = constant_of(tensor)
            if constant is not None:
                yield constant
        called = callee(graph, node)
        if called is not None and called not in around:
            yield from _constants(graph, called, (*around, function))


def _is_weight(constant: gs.Constant) -> bool:
    """Return whether a constant is a matrix of floats, and no shape, scale or shift."""
    sizes = [size for size in constant.shape if size != 1]
    return len(sizes) > 1 and prod(sizes) >= 64 and np.dtype(constant.dtype).kind == "f"
