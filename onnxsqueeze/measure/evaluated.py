"""The values of what nodes compute of constants alone, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.encode import encode, tensor_proto
from onnxsqueeze.runtime.session import Session

__all__ = ["evaluated"]

BATCH = 1 << 26
"""Bytes of constants that one session evaluates, unless a single node reads more."""


def evaluated(view: View, nodes: Iterable[gs.Node]) -> dict[str, Array]:
    """Return by key what nodes make that depend on constants alone, without those that cannot be evaluated."""
    nodes, found = list(nodes), dict[str, Array]()
    if not nodes:
        return found
    protos = _protos(view)
    for batch in _batches(view, nodes):
        found.update(_evaluate(view, protos, batch))
    return found


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


def _evaluate(view: View, protos: dict[str, onnx.NodeProto], nodes: list[gs.Node]) -> dict[str, Array]:
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
