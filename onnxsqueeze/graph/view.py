"""A read-only view of a graph for analysis: all nodes with their scope, shapes, and a NetworkX graph over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph.constants import alone, constant_value
from onnxsqueeze.graph.walk import is_standard, key_of, walk
from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.ir.protos import prepare_inference
from onnxsqueeze.targets.target import Target

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["View"]

Shape = tuple[int | str | None, ...]


class View:
    """What passes read; it never changes the graph, and costs nothing until it is asked.

    ``nodes`` are all nodes of the main graph and of the bodies of If, Loop and Scan in order; local functions are
    not part of it. Nodes, scopes and types are those of the moment when they were first asked for; producers,
    consumers and values are those of now.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @property
    def target(self) -> Target:
        """What the model is to run on."""
        return self.graph.target

    @cached_property
    def _walked(self) -> list[tuple[gs.Node, Graph]]:
        walked = list(walk(self.graph))
        self.graph.index.bodies = [body for node, _ in walked for body in subgraphs(node)]
        return walked

    @cached_property
    def nodes(self) -> list[gs.Node]:
        """The nodes of the main graph, each followed by those of its bodies."""
        return [node for node, _ in self._walked]

    @cached_property
    def _scopes(self) -> dict[int, Graph]:
        return {id(node): scope for node, scope in self._walked}

    @cached_property
    def _outputs(self) -> set[int]:
        if self.graph.index.bodies is None:  # a view that is made for a single edit need not walk again
            _ = self._walked
        return {id(tensor) for scope in (self.graph, *(self.graph.index.bodies or ())) for tensor in scope.outputs}

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """The keys that several nodes have, as equal names in both branches of an If make them; "" if any has none."""
        return frozenset(key for key, count in Counter(map(key_of, self.nodes)).items() if count > 1 or not key)

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
        return self._scopes[id(node)] is not self.graph

    def scope(self, node: gs.Node) -> Graph:
        """Return the graph that holds the node."""
        return self._scopes[id(node)]

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

    def value(self, tensor: gs.Tensor) -> Array | None:
        """Return the value of a tensor that is constant, also through Constant, Identity, Cast and Transpose."""
        return constant_value(tensor)

    def alone(self, tensor: gs.Tensor) -> bool:
        """Return whether the constant behind a tensor is read there alone: else an edit leaves it in the file."""
        return alone(tensor)

    def scalar(self, tensor: gs.Tensor) -> float | None:
        """Return the value of a constant with one element."""
        if isinstance(tensor, gs.Constant) and prod(tensor.shape) != 1:
            return None
        value = self.value(tensor)
        if value is None or value.size != 1:
            return None
        return float(value.astype(np.float64).item())

    def limits(self, node: gs.Node) -> tuple[float | None, float]:
        """Return the limits of a Clip or Relu; a lower limit of None means that they are computed at run time."""
        if node.op == "Relu":
            return 0.0, float("inf")
        if "min" in node.attrs or "max" in node.attrs:  # before opset 11
            return float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))
        limits = []
        for slot, default in ((1, -np.inf), (2, np.inf)):
            tensor = node.inputs[slot] if slot < len(node.inputs) and node.inputs[slot].name else None
            value = default if tensor is None else self.scalar(tensor)
            if value is None:
                return None, 0.0
            limits.append(float(value))
        return limits[0], limits[1]

    @cached_property
    def _types(self) -> dict[str, onnx.TypeProto]:
        skeleton = encode(self.graph, skeleton=True)
        prepare_inference(skeleton)
        with suppress(Exception):  # shapes are a help, not a need: models with odd custom ops still squeeze
            skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
        found: dict[str, onnx.TypeProto] = {}
        unclear: set[str] = set()
        stack = [skeleton.graph]
        while stack:
            graph = stack.pop()
            own = {info.name: info.type for info in (*graph.output, *graph.value_info, *graph.input)}
            unclear.update(name for name, kind in own.items() if found.setdefault(name, kind) != kind)
            for node in graph.node:
                for attribute in node.attribute:
                    stack += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        return {name: kind for name, kind in found.items() if name not in unclear}

    def shape(self, tensor: gs.Tensor) -> Shape | None:
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
            dtype: np.dtype[np.generic] = np.dtype(tensor.dtype)
            return dtype
        kind = self._types.get(tensor.name)
        return numpy_type(kind.tensor_type.elem_type) if kind is not None else None

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {id(node): i for i, node in enumerate(self.nodes)}

    def position(self, node: gs.Node) -> int:
        """Return where the node stands in ``nodes``, which is its vertex in ``network``."""
        return self._positions[id(node)]

    @cached_property
    def network(self) -> nx.MultiDiGraph:
        """The operators as a MultiDiGraph: vertices are positions in ``nodes``, edges carry the tensor's name."""
        import networkx as nx  # slow to import, and most runs need no network

        network, position = nx.MultiDiGraph(), self._positions
        for i, node in enumerate(self.nodes):
            network.add_node(i, op=node.op, key=key_of(node))
        for i, node in enumerate(self.nodes):
            for slot, tensor in enumerate(node.inputs):
                for source in tensor.inputs:
                    if id(source) in position:
                        network.add_edge(position[id(source)], i, tensor=tensor.name, slot=slot)
        return network
