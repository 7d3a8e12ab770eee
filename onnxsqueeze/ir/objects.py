"""The graph that passes edit: onnx-graphsurgeon's classes with identity semantics and a memory of their source."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxsqueeze.ir.protos import shell
from onnxsqueeze.ir.weights import Stored
from onnxsqueeze.targets.profiles import default
from onnxsqueeze.targets.target import Target

__all__ = ["Function", "Graph", "Index", "Node", "Source", "SourceFile", "subgraphs"]


class Node(gs.Node):  # type: ignore[misc]
    """A ``gs.Node`` that equals only itself and can be a set member.

    The standard domain is always written as the empty string, also where the model says ``ai.onnx``.
    """

    proto: onnx.NodeProto | None = None
    """What it was decoded from; for reading only."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def subgraphs(self, recursive: bool = False) -> Iterator[gs.Graph]:
        """Yield the graphs among the attributes, those in lists too."""
        for body in subgraphs(self):
            yield body
            if recursive:
                for node in body.nodes:
                    yield from node.subgraphs(recursive=True)


def subgraphs(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the graphs among the attributes of any node, those in lists too."""
    for value in node.attrs.values():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, gs.Graph):
                yield item


@dataclass
class Source:
    """What a graph was decoded from, in the order of its proto; the tensors are the live objects.

    A value_info or an annotation of a tensor that is nowhere comes with None.
    """

    inputs: list[tuple[gs.Tensor, onnx.ValueInfoProto]] = field(default_factory=list)
    outputs: list[tuple[gs.Tensor, onnx.ValueInfoProto]] = field(default_factory=list)
    value_info: list[tuple[gs.Tensor | None, onnx.ValueInfoProto]] = field(default_factory=list)
    initializers: list[gs.Tensor] = field(default_factory=list)
    annotations: list[tuple[gs.Tensor | None, onnx.TensorAnnotation]] = field(default_factory=list)


@dataclass(frozen=True)
class SourceFile:
    """The file that a graph was loaded from, mapped into memory."""

    path: Path
    data: memoryview
    payloads: Mapping[int, memoryview]
    """The raw data of its big initializers by index."""
    others: tuple[Path, ...] = ()
    """The files of its external data."""


@dataclass(eq=False)
class Index:
    """What is known of a graph while it is edited, so that not every edit looks through all of it.

    It is a memory and no part of the graph: a copy begins with an empty one.
    """

    names: set[str] | None = None
    """The names of all tensors and nodes, those of bodies included."""
    minted: dict[str, int] = field(default_factory=dict)
    """The number that the last name of a hint ends in, so that many of one hint are not counted through again."""
    places: dict[str, tuple[gs.Node, Graph | None]] | None = None
    """The nodes by their keys, each with the body that holds it, None for the graph itself."""
    last: int = 0
    """Where among the nodes the last one that was looked for stands."""
    bodies: list[Graph] | None = None
    """The bodies that the last walk has found."""
    folded: int = 0
    """Bytes by which constants that nodes became have made the file larger."""
    made: dict[tuple[str, int], Any] = field(default_factory=dict)
    """What was made of constants, by what it is and the constant's id, so that it is made once."""


class Graph(gs.Graph):  # type: ignore[misc]
    """A ``gs.Graph`` that equals only itself and keeps what graphsurgeon has no place for.

    ``inputs`` are the tensors that a caller must feed. An initializer that the model lists as an input too is a
    ``gs.Constant``, is not in ``inputs``, and is listed again at export. Where it is a default that a caller may
    override (IR version 4 and later) it carries ``overridable = True``.
    """

    ir_version: int | None = None
    proto: onnx.GraphProto | onnx.FunctionProto | None = None
    """The source without nodes, tensors and types; what else is in here can be edited and is exported."""
    model: onnx.ModelProto | None = None
    """The source model without graph and functions, likewise; None on a body or a function."""
    metadata: dict[str, str]
    """``metadata_props``, of the model if there is one, else of the body or the function itself."""
    folder: Path | None = None
    """Where external data of the source would lie; None if it did not come from a file."""
    external: tuple[Stored, ...] = ()
    """The weights of the source that stand in data files."""
    file: SourceFile | None = None
    """The file that it was loaded from, which ``save`` never overwrites."""
    spare: tuple[gs.Constant, ...] = ()
    """Initializers that no node used at load; they stay."""
    made_for: Target | None = None
    """The profile that passes go by, None for the default one; no part of the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata = {}
        self.source = Source()
        self.index = Index()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def target(self) -> Target:
        """What the model is to run on."""
        return self.made_for or default()

    def layer(self, *args: Any, **kwargs: Any) -> Any:
        """Add a node as ``gs.Graph.layer`` does; the node is a ``Node``."""
        outputs = super().layer(*args, **kwargs)
        self.nodes[-1].__class__ = Node
        return outputs

    def copy(self, tensor_map: Mapping[str, gs.Tensor] | None = None) -> Graph:
        """Return a graph that can be edited without touching this one and that is encoded to the same bytes.

        Weights in files, derived weights and protos are shared; arrays are copied. What a body captures is copied
        with it, or taken from ``tensor_map`` by name.
        """
        copied: Graph = _Copy(self, tensor_map or {}).graph(self)
        return copied


class Function(Graph, gs.Function):  # type: ignore[misc]
    """A model-local function; its ``attrs`` map attribute names to defaults, None where a caller must give one."""

    overload: str = ""
    defaults: tuple[onnx.AttributeProto, ...] = ()
    """What the defaults in ``attrs`` were decoded from."""

    @property
    def unique_id(self) -> tuple[str, ...]:
        """Domain and name, and the overload if there is one."""
        return (self.domain, self.name, self.overload) if self.overload else (self.domain, self.name)


class _Copy:
    """One run of ``Graph.copy``."""

    def __init__(self, root: gs.Graph, outer: Mapping[str, gs.Tensor]) -> None:
        self.root = root
        self.outer = dict(outer)
        for name in _own_names(root):
            self.outer.pop(name, None)
        self.copies: dict[int, gs.Tensor] = {}
        self.functions: list[gs.Graph] | None = None

    def graph(self, graph: gs.Graph) -> Any:
        copy = object.__new__(type(graph))
        vars(copy).update(vars(graph))
        if graph is self.root and getattr(graph, "model", None) is not None:
            self.functions = []
            self.functions.extend(self.graph(function) for function in graph.functions)
        if self.functions is not None:
            copy._functions = self.functions
        copy.nodes = [self.node(node) for node in graph.nodes]
        copy.inputs = self.tensors(graph.inputs)
        copy.outputs = self.tensors(graph.outputs)
        if graph.import_domains is not None:
            copy.import_domains = [shell(entry) for entry in graph.import_domains]
        if isinstance(graph, gs.Function):
            copy.attrs = {name: self.value(value) for name, value in graph.attrs.items()}
        if isinstance(graph, Graph):
            copy.index = Index()
            copy.metadata = dict(graph.metadata)
            copy.spare = tuple(self.tensors(graph.spare))
            copy.proto = None if graph.proto is None else shell(graph.proto)
            copy.model = None if graph.model is None else shell(graph.model)
            source = graph.source
            copy.source = Source(
                inputs=[(self.tensor(tensor), info) for tensor, info in source.inputs],
                outputs=[(self.tensor(tensor), info) for tensor, info in source.outputs],
                value_info=[(tensor and self.tensor(tensor), info) for tensor, info in source.value_info],
                initializers=self.tensors(source.initializers),
                annotations=[(tensor and self.tensor(tensor), proto) for tensor, proto in source.annotations],
            )
        return copy

    def node(self, node: gs.Node) -> Node:
        attrs = OrderedDict((name, self.value(value)) for name, value in node.attrs.items())
        copy = Node(node.op, node.name, attrs, self.tensors(node.inputs), self.tensors(node.outputs), node.domain)
        copy.proto = getattr(node, "proto", None)
        return copy

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, gs.Graph):
            return self.graph(value)
        if isinstance(value, gs.Tensor):
            return self.tensor(value)
        return value.copy() if isinstance(value, np.ndarray) else value

    def tensors(self, tensors: Iterable[gs.Tensor]) -> list[gs.Tensor]:
        return [self.tensor(tensor) for tensor in tensors]

    def tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        copy = self.copies.get(id(tensor)) or self.outer.get(tensor.name)
        if copy is None:
            copy = object.__new__(type(tensor))
            fields = vars(copy)
            fields.update(vars(tensor))
            fields["inputs"] = SynchronizedList(copy, "outputs", [])
            fields["outputs"] = SynchronizedList(copy, "inputs", [])
            for name in ("shape", "_values"):
                if isinstance(fields.get(name), (list, np.ndarray)):
                    fields[name] = fields[name].copy()
            self.copies[id(tensor)] = copy
        return copy


def _own_names(graph: gs.Graph) -> Iterator[str]:
    """Yield the names that ``graph`` defines itself."""
    tensors = [*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs)]
    for tensor in [*tensors, *(graph.source.initializers if isinstance(graph, Graph) else ())]:
        yield tensor.name
