"""Constant folding: the values of the nodes that depend on constants alone, computed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.encode import encode, tensor_proto
from onnxsqueeze.ir.objects import subgraphs
from onnxsqueeze.ir.weights import Derived, Weight, peek
from onnxsqueeze.runtime.session import Session

__all__ = ["fold"]

Values = NDArray[np.generic] | Weight

NOT_FOLDED = (
    *("Constant", "QuantizeLinear", "DequantizeLinear", "Dropout", "RandomNormal", "RandomUniform"),
    *("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"),
)
HELD = 1 << 23
"""A larger transposed weight, in bytes, is computed while the file is written instead of held."""
BATCH = 1 << 26
"""Bytes of constants that one session evaluates, unless a single node reads more."""


def fold(view: View, limit: int) -> dict[str, Values]:
    """Return by key the values of the nodes that depend on constants alone and that another kind of node reads.

    Nodes whose result is more than ``limit`` bytes larger than the constants that it replaces are left out.
    """
    chosen = _chosen(view, limit)
    found: dict[str, Values] = {}
    computed: list[gs.Node] = []
    for node in chosen.values():
        if len(node.outputs) != 1 or all(id(reader) in chosen for reader in node.outputs[0].outputs):
            continue
        source = node.inputs[0]
        if _restores(node):
            found[key_of(node)] = _restored(source)
        elif node.op == "Transpose" and isinstance(source, gs.Constant) and source._values.nbytes > HELD:
            found[key_of(node)] = _transposed(source, node.attrs.get("perm"))
        else:
            computed.append(node)
    if computed:
        protos = _protos(view)
        for batch in _batches(view, computed):
            found.update(_evaluate(view, protos, batch))
    return found


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
    if _restores(node):
        return True
    freed = sum(int(t._values.nbytes) for t in inputs if isinstance(t, gs.Constant) and len(t.outputs) == 1)
    for tensor in node.outputs:
        shape, dtype = view.shape(tensor), view.dtype(tensor)
        if not tensor.name or shape is None or dtype is None or dtype.kind == "O":
            return False
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) < len(shape) or prod(sizes) * dtype.itemsize > freed + limit:
            return False
    return not _widens(node)


def _widens(node: gs.Node) -> bool:
    """Whether this is a Cast to a wider type: whoever needs its value looks through it, and the file stays small."""
    if node.op != "Cast" or not isinstance(node.inputs[0], gs.Constant) or prod(node.inputs[0].shape) <= 16:
        return False
    target = numpy_type(int(node.attrs.get("to", 0)))
    return target is None or target.itemsize > np.dtype(node.inputs[0].dtype).itemsize


def _restores(node: gs.Node) -> bool:
    """Whether this makes float32 of a weight that is stored in 16 bits: passes want to see it, and ``half`` is last."""
    source = node.inputs[0] if node.op == "Cast" else None
    return (
        isinstance(source, gs.Constant)
        and not getattr(source, "overridable", False)
        and np.dtype(source.dtype).name in ("float16", "bfloat16")
        and int(node.attrs.get("to", 0)) == onnx.TensorProto.FLOAT
    )


def _restored(source: gs.Constant) -> Derived:
    return Derived(source.shape, np.float32, lambda: np.asarray(peek(source), np.float32))


def _transposed(source: gs.Constant, perm: Sequence[int] | None) -> Derived:
    values, axes = source._values, perm or range(len(source.shape))[::-1]
    shape = [source.shape[axis] for axis in axes]
    return Derived(
        shape, source.dtype, lambda: np.transpose(values.peek() if isinstance(values, Weight) else values, axes)
    )


def _batches(view: View, nodes: Iterable[gs.Node]) -> Iterable[list[gs.Node]]:
    """Group nodes that can be evaluated together: few bytes, and no two tensors of one name."""
    batch: list[gs.Node] = []
    names: dict[str, gs.Tensor] = {}
    for node in nodes:
        own = {t.name: t for each in _needed(view, [node]) for t in (*each.inputs, *each.outputs) if t.name}
        both = names | own
        size = sum(int(tensor._values.nbytes) for tensor in both.values() if isinstance(tensor, gs.Constant))
        if batch and (size > BATCH or any(names.get(name, tensor) is not tensor for name, tensor in own.items())):
            yield batch
            batch, both = [], own
        batch.append(node)
        names = both
    yield batch


def _needed(view: View, nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """Return the nodes and all that they are computed from, in the order of the graph."""
    import networkx as nx  # slow to import

    wanted = {view.position(node) for node in nodes}
    wanted.update(*(nx.ancestors(view.network, position) for position in wanted))
    return [view.nodes[position] for position in sorted(wanted)]


def _protos(view: View) -> dict[str, onnx.NodeProto]:
    found: dict[str, onnx.NodeProto] = {}
    stack = [encode(view.graph, skeleton=True).graph]
    while stack:
        for node in stack.pop().node:
            found[next(filter(None, node.output), "")] = node
            for attribute in node.attribute:
                stack += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
    return found


def _evaluate(view: View, protos: dict[str, onnx.NodeProto], nodes: list[gs.Node]) -> dict[str, Values]:
    needed = _needed(view, nodes)
    model = onnx.ModelProto(ir_version=max(int(view.graph.ir_version or 0), 4))
    model.opset_import.add(version=view.opset)
    model.graph.name = "constants"
    model.graph.node.extend(protos[key_of(node)] for node in needed)
    constants = {t.name: t for node in needed for t in node.inputs if isinstance(t, gs.Constant) and t.name}
    model.graph.initializer.extend(map(tensor_proto, constants.values()))
    keys = [key_of(node) for node in nodes]
    model.graph.output.extend(onnx.ValueInfoProto(name=key) for key in keys)
    try:
        values = Session(model, optimize="none", threads=1).run({}, keys)
    except (ModelError, FeedError):
        if len(nodes) == 1:
            return {}  # it would fail at run time, too
        return {key: value for node in nodes for key, value in _evaluate(view, protos, [node]).items()}
    return {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
