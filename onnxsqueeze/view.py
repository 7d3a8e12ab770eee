"""A read-only view of a graph for analysis: all nodes with their scope, shapes, and a NetworkX graph over them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import codec
from onnxsqueeze.codec import Graph
from onnxsqueeze.weights import peek

__all__ = ["View", "key_of", "walk"]

_STANDARD = (None, "", "ai.onnx")


def key_of(node: gs.Node) -> str:
    """Return the name of the node's first named output, which identifies it across edits."""
    return next((str(tensor.name) for tensor in node.outputs if tensor.name), "")


def is_standard(node: gs.Node) -> bool:
    """Return whether the node's operator is of the standard ONNX domain."""
    return node.domain in _STANDARD


def walk(graph: Graph) -> Iterator[tuple[gs.Node, Graph]]:
    """Yield every node with the graph that holds it: the main graph first, each body right after its node."""
    for node in graph.nodes:
        yield node, graph
        for value in node.attrs.values():
            for body in value if isinstance(value, list) else (value,):
                if isinstance(body, gs.Graph):
                    yield from walk(body)


class View:
    """What passes read. It is built once per pass and never changes the graph.

    ``nodes`` are all nodes of the main graph and of the bodies of If, Loop and Scan in order; local functions are
    not part of it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._scope: dict[int, Graph] = {}
        self.nodes: list[gs.Node] = []
        self._outputs: set[int] = set()
        scopes = {id(graph): graph}
        for node, scope in walk(graph):
            self.nodes.append(node)
            self._scope[id(node)] = scope
            scopes[id(scope)] = scope
        for scope in scopes.values():
            self._outputs.update(id(tensor) for tensor in scope.outputs)

    @property
    def opset(self) -> int:
        """The version of the standard operator set."""
        return int(self.graph.opset)

    def of(self, *ops: str) -> Iterator[gs.Node]:
        """Yield the nodes whose operator is one of ``ops``, of the standard domain."""
        wanted = set(ops)
        return (node for node in self.nodes if node.op in wanted and is_standard(node))

    def in_body(self, node: gs.Node) -> bool:
        """Return whether the node lies in the body of an If, Loop or Scan, where nothing can be measured."""
        return self._scope[id(node)] is not self.graph

    def scope(self, node: gs.Node) -> Graph:
        """Return the graph that holds the node."""
        return self._scope[id(node)]

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Return whether the tensor is an output of the model or of a body."""
        return id(tensor) in self._outputs

    def consumers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Return the nodes that read the tensor, once per input that reads it."""
        return list(tensor.outputs)

    def only_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """Return the node that alone reads the tensor, if it is read once and is no output."""
        if len(tensor.outputs) == 1 and not self.is_output(tensor):
            return tensor.outputs[0]
        return None

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        """Return the node that computes the tensor; None for inputs and constants."""
        return tensor.inputs[0] if tensor.inputs else None

    def constant(self, tensor: gs.Tensor) -> gs.Constant | None:
        """Return the tensor if it is an initializer that the caller of the model cannot override."""
        if isinstance(tensor, gs.Constant) and not getattr(tensor, "overridable", False):
            return tensor
        return None

    def value(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        """Return the value of a tensor that is constant, also through Constant, Identity, Cast and Transpose."""
        constant = self.constant(tensor)
        if constant is not None:
            return peek(constant)
        node = self.producer(tensor)
        if node is None or not is_standard(node):
            return None
        if node.op == "Constant":
            value = node.attrs.get("value")
            if isinstance(value, gs.Constant):
                return peek(value)
            return np.asarray(value.values) if hasattr(value, "values") else None
        if node.op not in ("Identity", "Cast", "Transpose"):
            return None
        inner = self.value(node.inputs[0])
        if inner is None or node.op == "Identity":
            return inner
        if node.op == "Transpose":
            return np.transpose(inner, node.attrs.get("perm"))
        target = onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"]))
        return inner.astype(target)

    def scalar(self, tensor: gs.Tensor) -> float | None:
        """Return the value of a constant with one element."""
        if isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape, dtype=np.int64)) != 1:
            return None
        value = self.value(tensor)
        return float(np.asarray(value, dtype=np.float64).reshape(-1)[0]) if value is not None and value.size == 1 else None

    @cached_property
    def _types(self) -> dict[str, onnx.TypeProto]:
        skeleton = codec.encode(self.graph, skeleton=True)
        try:
            skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
        except Exception:  # shapes are a help, not a need: models with odd custom ops still squeeze
            pass
        found: dict[str, onnx.TypeProto] = {}
        stack = [skeleton.graph]
        while stack:
            graph = stack.pop()
            for info in (*graph.value_info, *graph.input, *graph.output):
                found.setdefault(info.name, info.type)
            for node in graph.node:
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH:
                        stack.append(attribute.g)
        return found

    def shape(self, tensor: gs.Tensor) -> tuple[int | str | None, ...] | None:
        """Return the inferred shape: an int, a symbol or None per axis; None if not even the rank is known."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(d) for d in tensor.shape)
        kind = self._types.get(tensor.name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.tensor_type.shape.dim
        )

    def dtype(self, tensor: gs.Tensor) -> np.dtype[np.generic] | None:
        """Return the element type; None if it is unknown or the tensor is no tensor but a sequence or map."""
        if isinstance(tensor, gs.Constant):
            return np.dtype(tensor.dtype)
        kind = self._types.get(tensor.name)
        code = kind.tensor_type.elem_type if kind is not None else 0
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)) if code else None

    @cached_property
    def network(self) -> nx.MultiDiGraph:
        """The operators as a MultiDiGraph: vertices are positions in ``nodes``, edges carry the tensor's name."""
        network = nx.MultiDiGraph()
        position = {id(node): i for i, node in enumerate(self.nodes)}
        for i, node in enumerate(self.nodes):
            network.add_node(i, op=node.op, key=key_of(node))
        for i, node in enumerate(self.nodes):
            for slot, tensor in enumerate(node.inputs):
                for source in tensor.inputs:
                    if id(source) in position:
                        network.add_edge(position[id(source)], i, tensor=tensor.name, slot=slot)
        return network
