"""Models that compute in 16-bit floats, made to compute in float32: what they hold and what they are fed stays."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import constant_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, walk
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.ir.weights import Derived, Weight
from onnxsqueeze.techniques.floats.border import given, made
from onnxsqueeze.techniques.floats.halved import HALVES

__all__ = ["computes_in", "mostly_halves", "obstacle", "widen"]

_ELEMENTS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_KIND = {"Cast": "to"}
"""The attribute that says which type a node makes; that of all others is ``dtype``."""


def computes_in(view: View) -> tuple[gs.Node, np.dtype[Any]] | None:
    """Return the first node that reads a 16-bit weight, and the type; None if there is none."""
    for node in view.nodes:
        for held in filter(None, map(constant_of, node.inputs)):
            if np.dtype(held.dtype) in HALVES:
                return node, np.dtype(held.dtype)
    return None


def mostly_halves(view: View) -> bool:
    """Return whether most float weights of a model are in 16 bits."""
    tensors = {id(t): t for node in view.nodes for t in filter(None, map(constant_of, node.inputs))}
    sizes = [(prod(t.shape), np.dtype(t.dtype)) for t in tensors.values()]
    halves = sum(size for size, dtype in sizes if dtype in HALVES)
    return bool(halves >= sum(size for size, dtype in sizes if dtype == np.float32))


def obstacle(view: View) -> str:
    """Return why a model cannot be made to compute in float32, "" if it can."""
    if view.graph.functions:
        return "local functions may be written for 16-bit floats"
    for node in view.nodes:
        if not is_standard(node) and any(view.dtype(t) in HALVES for t in (*node.inputs, *node.outputs) if t.name):
            return f"the custom operator {node.op} reads or makes 16-bit floats"
    scopes = [view.graph, *(body for node in view.nodes for body in subgraphs(node))]
    if any(not tensor.inputs and tensor.dtype in HALVES for scope in scopes for tensor in scope.outputs):
        return "an output is an input or a constant"
    return ""


def widen(graph: Graph) -> None:
    """Let all 16-bit tensors be float32: weights in memory, between nodes, in bodies.

    Inputs and outputs of the model keep their types, through a Cast; a Cast between floats becomes an Identity.
    """
    view = View(graph)
    floats = {np.dtype(np.float32), *HALVES}
    casts = [
        (node, scope, view.dtype(node.inputs[0]) in floats)
        for node, scope in walk(graph)
        if node.op == "Cast" and int(node.attrs.get("to", 0)) in (*_ELEMENTS, TensorProto.FLOAT)
    ]
    halves = {id(t) for t in (*graph.inputs, *graph.outputs) if t.dtype in HALVES}
    for tensor in _tensors(graph):
        if isinstance(tensor, gs.Constant):
            if np.dtype(tensor.dtype) in HALVES:
                name = edit.mint(graph, f"{tensor.name}_float32")
                edit.redirect(tensor, gs.Constant(name, _wide(tensor._values)))
        elif tensor.dtype in HALVES and id(tensor) not in halves:
            tensor.dtype = np.dtype(np.float32)
    for node, _ in walk(graph):
        kind = _KIND.get(node.op, "dtype")
        if node.attrs.get(kind) in _ELEMENTS:
            node.attrs[kind] = int(TensorProto.FLOAT)
        value = node.attrs.get("value")
        if isinstance(value, gs.Constant) and np.dtype(value.dtype) in HALVES:
            node.attrs["value"] = gs.Constant(value.name, _wide(value._values))
    for node, scope, plain in casts:
        if plain:
            edit.replace(graph, scope, node, "Identity", [node.inputs[0]])
    for tensor in graph.inputs:
        if id(tensor) in halves:
            given(graph, tensor)
    for tensor in graph.outputs:
        if id(tensor) in halves:
            made(graph, tensor)


def _tensors(graph: Graph) -> Iterator[gs.Tensor]:
    """Return all tensors of the graph and its bodies, each once."""
    scopes = [graph, *(body for node, _ in walk(graph) for body in subgraphs(node))]
    found = {id(t): t for scope in scopes for t in (*scope.inputs, *scope.outputs)}
    for node, _ in walk(graph):
        found.update((id(t), t) for t in (*node.inputs, *node.outputs))
    return iter(list(found.values()))


def _wide(values: Weight | NDArray[Any]) -> Derived:
    def read() -> NDArray[np.float32]:
        return np.asarray(values.peek() if isinstance(values, Weight) else values, np.float32)

    return Derived(values.shape, np.float32, read)
