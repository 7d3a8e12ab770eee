"""Einsum of a tensor and a weight as MatMul, between Reshapes where several axes are contracted or made at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived, peek

__all__ = ["is_product", "write_as_product"]


@dataclass(frozen=True)
class _Product:
    """``x`` is contracted over its last ``contracted`` axes; ``perm`` brings those of the weight to the front."""

    slot: int
    free: int
    contracted: tuple[int, ...]
    made: tuple[int, ...]
    perm: tuple[int, ...]


def is_product(view: View, node: gs.Node) -> bool:
    """Return whether the node is ``y[f…, n…] = Σ_c x[f…, c…]·W[…]`` with a constant weight that it alone reads."""
    return node.op == "Einsum" and is_standard(node) and _product(node) is not None and _may(view, node)


def _may(view: View, node: gs.Node) -> bool:
    weight = node.inputs[1 - _slot(node)]
    known = view.constant(weight) is not None and np.dtype(weight.dtype) == np.float32
    return known and len(weight.outputs) == 1 and view.value(node.inputs[_slot(node)]) is None


def _slot(node: gs.Node) -> int:
    return 1 if isinstance(node.inputs[0], gs.Constant) else 0


def _product(node: gs.Node) -> _Product | None:
    sides = str(node.attrs.get("equation", "")).replace(" ", "").split("->")
    terms = sides[0].split(",")
    if len(sides) != 2 or len(terms) != 2 or len(node.inputs) != 2:
        return None
    slot = _slot(node)
    weight = node.inputs[1 - slot]
    if not isinstance(weight, gs.Constant):
        return None
    x, w, y = (re.findall(r"\.\.\.|[A-Za-z]", term) for term in (terms[slot], terms[1 - slot], sides[1]))
    if any(len(set(each)) != len(each) for each in (x, w, y)) or "..." in w or len(w) != len(weight.shape):
        return None
    contracted = [label for label in x if label in w]
    free, made = x[: len(x) - len(contracted)], [label for label in y if label in w]
    if not contracted or not made or set(contracted) & set(made) or set(w) != {*contracted, *made}:
        return None
    if x != free + contracted or y != free + made or ("..." in free and (len(contracted) > 1 or len(made) > 1)):
        return None
    sizes = dict(zip(w, map(int, weight.shape), strict=True))
    perm = tuple(w.index(label) for label in (*contracted, *made))
    return _Product(slot, len(free), tuple(sizes[c] for c in contracted), tuple(sizes[n] for n in made), perm)


def write_as_product(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Put MatMul in the place of Einsum; axes that are contracted or made together are one in between."""
    found = _product(node)
    assert found is not None
    x, given, name = node.inputs[found.slot], node.inputs[1 - found.slot], node.outputs[0].name
    shape = prod(found.contracted), prod(found.made)
    weight = given
    if found.perm != (0, 1):

        def values() -> np.ndarray:
            return np.ascontiguousarray(np.transpose(peek(given), found.perm).reshape(shape))

        weight = edit.constant(graph, f"{given.name}_matrix", Derived(shape, np.dtype(np.float32), values))
    if len(found.contracted) > 1:
        sizes = edit.constant(graph, f"{name}_rows", np.array([0] * found.free + [shape[0]], np.int64))
        x = edit.insert(graph, scope, "Reshape", [x, sizes], f"{name}_flat", before=node)
    if len(found.made) == 1:
        edit.replace(graph, scope, node, "MatMul", [x, weight])
        return
    product = edit.insert(graph, scope, "MatMul", [x, weight], f"{name}_product", before=node)
    sizes = edit.constant(graph, f"{name}_sizes", np.array([0] * found.free + list(found.made), np.int64))
    edit.replace(graph, scope, node, "Reshape", [product, sizes])
