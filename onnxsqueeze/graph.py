"""The graph that passes edit: onnx-graphsurgeon's classes with identity semantics and a memory of their source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.function import Function as GsFunction

__all__ = ["Function", "Graph", "Node", "Source"]


class Node(gs.Node):  # type: ignore[misc]
    """A ``gs.Node`` that equals only itself, can be a set member, and knows the proto it was decoded from."""

    proto: onnx.NodeProto | None = None

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def subgraphs(self, recursive: bool = False) -> Iterator[gs.Graph]:
        """Yield the graphs among the attributes, those in lists too."""
        for value in self.attrs.values():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, gs.Graph):
                    yield item
                    if recursive:
                        yield from item.subgraphs(recursive=True)


@dataclass
class Source:
    """What a graph was decoded from, in the order of its proto; the tensors are the live objects."""

    inputs: list[tuple[gs.Tensor, onnx.ValueInfoProto]] = field(default_factory=list)
    outputs: list[tuple[gs.Tensor, onnx.ValueInfoProto]] = field(default_factory=list)
    value_info: list[tuple[gs.Tensor | None, onnx.ValueInfoProto]] = field(default_factory=list)
    initializers: list[gs.Constant] = field(default_factory=list)
    quantized: list[tuple[gs.Tensor | None, onnx.TensorAnnotation]] = field(default_factory=list)


class Graph(gs.Graph):  # type: ignore[misc]
    """A ``gs.Graph`` that equals only itself and keeps what graphsurgeon has no place for.

    ``inputs`` are the tensors that a caller must feed; an initializer that is also listed as an input stays a
    ``gs.Constant`` and is listed again at export. Where such a constant is a default that a caller may override
    (IR version 4 and later) it carries ``overridable = True``.
    """

    proto: onnx.GraphProto | onnx.FunctionProto | None = None
    """The source without nodes, tensors and types; ``doc_string`` and ``name`` of the graph win at export."""
    model: onnx.ModelProto | None = None
    """The source model without graph and functions; None on a body or a function."""
    path: Path | None = None
    folder: Path | None = None
    """Where the external data of the source lies."""
    external: bool = False
    """Whether some weight of the source stood in a data file."""
    metadata: dict[str, str]
    """``metadata_props`` of the model; those of the graph itself for a body or a function."""
    spare: tuple[gs.Constant, ...] = ()
    """Initializers that no node used at load; they are kept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata = {}
        self.source = Source()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def layer(self, *args: Any, **kwargs: Any) -> Any:
        """Add a node as ``gs.Graph.layer`` does; the node is a ``Node``."""
        outputs = super().layer(*args, **kwargs)
        self.nodes[-1].__class__ = Node
        return outputs


class Function(Graph, GsFunction):  # type: ignore[misc]
    """A model-local function; its ``attrs`` map attribute names to defaults, None where a caller must give one."""

    overload: str = ""
    defaults: tuple[onnx.AttributeProto, ...] = ()

    @property
    def unique_id(self) -> tuple[str, ...]:
        """Domain and name, and the overload if there is one."""
        return (self.domain, self.name, self.overload) if self.overload else (self.domain, self.name)
