"""Constant folding: the values of the nodes that depend on constants alone, computed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.objects import subgraphs
from onnxsqueeze.ir.weights import Derived, Weight
from onnxsqueeze.measure.evaluated import evaluated

__all__ = ["fold", "growth"]

Values = NDArray[np.generic] | Weight

NOT_FOLDED = (
    *("Constant", "QuantizeLinear", "DequantizeLinear", "Dropout", "RandomNormal", "RandomUniform"),
    *("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"),
)
SHARE = 0.005
"""By how much all folded constants together may grow, as a share of the bytes of all constants."""
NODE = 64
"""Bytes of a file that a node takes, at least."""
HELD = 1 << 23
"""A larger transposed weight, in bytes, is computed while the file is written instead of held."""


def fold(view: View, limit: int, folded: int = 0) -> dict[str, Values]:
    """Return by key the values of the nodes that depend on constants alone and that another kind of node reads.

    Nodes whose result is more than ``limit`` bytes larger than the constants that it replaces are left out, and so are
    those that would make all constants together more than ``SHARE`` larger; ``folded`` bytes are what they have grown
    by already.
    """
    chosen = _chosen(view, limit)
    ends = [
        node for node in chosen.values()
        if len(node.outputs) == 1 and not all(id(reader) in chosen for reader in node.outputs[0].outputs)
    ]  # fmt: skip
    found: dict[str, Values] = {}
    computed: list[gs.Node] = []
    for node in _affordable(view, ends, chosen, folded):
        source = node.inputs[0]
        if node.op == "Transpose" and isinstance(source, gs.Constant) and source._values.nbytes > HELD:
            found[key_of(node)] = _transposed(source, node.attrs.get("perm"))
        else:
            computed.append(node)
    found.update(evaluated(view, computed))
    return found


def growth(node: gs.Node, size: int, chosen: Collection[int] | None = None) -> int:
    """Return by how many bytes a file grows if the node becomes a constant of ``size`` bytes; under 0: it shrinks.

    What goes are the nodes that only lead to it, of those ``chosen``, and the constants that only they read.
    """
    gone, stack = {id(node): node}, [node]
    while stack:
        for tensor in stack.pop().inputs:
            maker = tensor.inputs[0] if tensor.inputs else None
            if maker is None or id(maker) in gone or (chosen is not None and id(maker) not in chosen):
                continue
            if all(id(reader) in gone for reader in tensor.outputs):
                gone[id(maker)] = maker
                stack.append(maker)
    read = {id(t): t for each in gone.values() for t in each.inputs if isinstance(t, gs.Constant)}
    freed = sum(t._values.nbytes for t in read.values() if all(id(reader) in gone for reader in t.outputs))
    return int(size - freed - NODE * len(gone))


def _affordable(view: View, ends: list[gs.Node], chosen: Collection[int], folded: int) -> list[gs.Node]:
    """Return the nodes that may become constants, in order: those that cost least, as far as the budget goes."""
    constants = {id(t): t for node in view.nodes for t in node.inputs if isinstance(t, gs.Constant)}
    budget = SHARE * sum(t._values.nbytes for t in constants.values()) - folded
    costs = {id(node): growth(node, _bytes(view, node.outputs[0]) or 0, chosen) for node in ends}
    kept: set[int] = set()
    for node in sorted(ends, key=lambda node: costs[id(node)]):
        if costs[id(node)] > 0:
            budget -= costs[id(node)]
            if budget < 0:
                break
        kept.add(id(node))
    return [node for node in ends if id(node) in kept]


def _bytes(view: View, tensor: gs.Tensor) -> int | None:
    """Return how many bytes a tensor takes, None if that is not known."""
    shape, dtype = view.shape(tensor), view.dtype(tensor)
    if not tensor.name or shape is None or dtype is None or dtype.kind == "O":
        return None
    sizes = [size for size in shape if isinstance(size, int)]
    return None if len(sizes) < len(shape) else prod(sizes) * dtype.itemsize


def _chosen(view: View, limit: int) -> dict[int, gs.Node]:
    chosen: dict[int, gs.Node] = {}
    for node in view.nodes:
        inputs = [tensor for tensor in node.inputs if tensor.name]
        if (
            inputs
            and is_standard(node)
            and node.op not in NOT_FOLDED
            and key_of(node) not in view.ambiguous
            and next(subgraphs(node), None) is None
            and all(view.constant(t) is not None or (t.inputs and id(t.inputs[0]) in chosen) for t in inputs)
            and not any(view.is_output(tensor) for tensor in node.outputs)
            and _pays(view, node, inputs, limit)
        ):
            chosen[id(node)] = node
    return chosen


def _pays(view: View, node: gs.Node, inputs: Iterable[gs.Tensor], limit: int) -> bool:
    freed = sum(int(t._values.nbytes) for t in inputs if isinstance(t, gs.Constant) and len(t.outputs) == 1)
    for tensor in node.outputs:
        size = _bytes(view, tensor)
        if size is None or size > freed + limit:
            return False
    return not _widens(node)


def _widens(node: gs.Node) -> bool:
    """Whether this is a Cast to a wider type: whoever needs its value looks through it, and the file stays small."""
    if node.op != "Cast" or not isinstance(node.inputs[0], gs.Constant) or prod(node.inputs[0].shape) <= 16:
        return False
    target = numpy_type(int(node.attrs.get("to", 0)))
    return target is None or target.itemsize > np.dtype(node.inputs[0].dtype).itemsize


def _transposed(source: gs.Constant, perm: Sequence[int] | None) -> Derived:
    values, axes = source._values, perm or range(len(source.shape))[::-1]
    shape = [source.shape[axis] for axis in axes]
    return Derived(
        shape, source.dtype, lambda: np.transpose(values.peek() if isinstance(values, Weight) else values, axes)
    )
