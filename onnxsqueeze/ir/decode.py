"""ONNX protos to graph objects; every object keeps the proto that it came from."""

from __future__ import annotations

import gc
from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.errors import ModelError
from onnxsqueeze.ir.attributes import field_of, plain
from onnxsqueeze.ir.external import DataFolder
from onnxsqueeze.ir.objects import Function, Graph, Node
from onnxsqueeze.ir.protos import describe, entries, shell, standard
from onnxsqueeze.ir.weights import Sparse, Stored

__all__ = ["decode"]

Scope = ChainMap[str, gs.Tensor]


def decode(
    model: onnx.ModelProto, folder: Path | None = None, *, payloads: Mapping[int, memoryview] | None = None
) -> Graph:
    """Return the graph of ``model``, which must not be changed afterwards; ``folder`` holds its external data.

    ``payloads`` gives the raw bytes of those initializers, by index, whose proto came without them.
    Raises ModelError for a tensor whose data does not fill its shape.
    """
    collecting = gc.isenabled()
    gc.disable()  # none of the many new objects is garbage: looking for it takes most of the time
    try:
        return _Decoder(folder).model(model, payloads or {})
    finally:
        if collecting:
            gc.enable()


class _Decoder:
    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else DataFolder(folder)
        self.used: set[int] = set()
        self.graphs: list[Graph] = []
        self.external: list[Stored] = []

    def model(self, model: onnx.ModelProto, payloads: Mapping[int, memoryview]) -> Graph:
        graph = Graph(
            opset=opset_of(model.opset_import),
            import_domains=[shell(entry) for entry in model.opset_import],
            producer_name=model.producer_name,
            producer_version=model.producer_version,
        )
        graph.ir_version = model.ir_version
        graph.model = shell(model, "graph", "functions")
        graph.folder = None if self.folder is None else self.folder.path
        for function in model.functions:
            graph.functions.append(self.function(function, graph))
        self.graph(graph, model.graph, ChainMap(), payloads)
        graph.metadata = entries(model.metadata_props)
        graph.external = tuple(self.external)
        for each in self.graphs:
            each.spare = tuple(item for item in each.source.initializers if id(item) not in self.used)
        return graph

    def function(self, proto: onnx.FunctionProto, outer: Graph) -> Function:
        function = Function(
            _name(proto.name),
            domain=_name(proto.domain),
            doc_string=proto.doc_string,
            opset=opset_of(proto.opset_import) if proto.opset_import else outer.opset,
            import_domains=[shell(entry) for entry in proto.opset_import],
        )
        function.ir_version = outer.ir_version
        function._functions = outer._functions
        function.overload = _name(proto.overload)
        function.metadata = entries(proto.metadata_props)
        function.proto = shell(proto, "node", "value_info", "attribute", "attribute_proto", "input", "output")
        scope: Scope = ChainMap()
        function.inputs = [_find(name, scope) for name in proto.input]
        function.attrs = dict.fromkeys(map(_name, proto.attribute))
        for attribute in proto.attribute_proto:
            function.attrs[_name(attribute.name)] = self.attribute(attribute, function, scope)
        function.defaults = tuple(proto.attribute_proto)
        self.body(function, proto, scope)
        function.outputs = [_find(name, scope) for name in proto.output]
        return function

    def graph(self, graph: Graph, proto: onnx.GraphProto, scope: Scope, payloads: Mapping[int, memoryview]) -> None:
        """Decode ``proto`` into the empty ``graph``; ``scope`` ends up with its names on top of the outer ones."""
        graph.name = graph.__name__ = proto.name
        graph.doc_string = proto.doc_string
        graph.metadata = entries(proto.metadata_props)
        graph.proto = shell(
            proto,
            "node",
            "initializer",
            "sparse_initializer",
            "input",
            "output",
            "value_info",
            "quantization_annotation",
        )
        source = graph.source
        for index, tensor in enumerate(proto.initializer):
            source.initializers.append(self.constant(tensor, payloads.get(index)))
        source.initializers.extend(map(self.constant, proto.sparse_initializer))
        scope.update((constant.name, constant) for constant in source.initializers)
        for info in proto.input:
            tensor = _find(info.name, scope, local=True)
            source.inputs.append((tensor, info))
            if isinstance(tensor, gs.Constant):
                tensor.overridable = (graph.ir_version or 0) >= 4
            else:
                graph.inputs.append(tensor)
        self.body(graph, proto, scope)
        for info in proto.output:
            tensor = _find(info.name, scope)
            self.used.add(id(tensor))
            source.outputs.append((tensor, info))
            graph.outputs.append(tensor)
        local = scope.maps[0]
        for info in (*proto.output, *proto.input):  # the last word on a type is the interface's
            _set_type(local.get(info.name), info)
        for annotation in proto.quantization_annotation:
            source.annotations.append((local.get(annotation.tensor_name), annotation))

    def body(self, graph: Graph, proto: onnx.GraphProto | onnx.FunctionProto, scope: Scope) -> None:
        """Decode the nodes of ``proto`` and the types that it gives to what they compute."""
        self.graphs.append(graph)
        for node in proto.node:
            for name in node.output:
                _find(name, scope, local=True)
        graph.nodes.extend(self.node(node, graph, scope) for node in proto.node)
        for info in proto.value_info:
            graph.source.value_info.append((scope.get(info.name), info))
            _set_type(scope.maps[0].get(info.name), info)  # an outer graph types its tensors itself

    def node(self, proto: onnx.NodeProto, graph: Graph, scope: Scope) -> Node:
        inputs = [_find(name, scope) for name in proto.input]
        self.used.update(map(id, inputs))
        node = Node(
            _name(proto.op_type),
            _name(proto.name),
            attrs=OrderedDict((_name(item.name), self.attribute(item, graph, scope)) for item in proto.attribute),
            inputs=inputs,
            outputs=[_find(name, scope) for name in proto.output],
            domain=standard(_name(proto.domain)),
        )
        node.proto = proto
        return node

    def attribute(self, proto: onnx.AttributeProto, graph: Graph, scope: Scope) -> Any:
        field = field_of(proto)
        if field not in ("t", "tensors", "g", "graphs"):
            return plain(proto)
        value = getattr(proto, field)
        if field == "t":
            return self.constant(value)
        if field == "tensors":
            return [self.constant(item) for item in value]
        if field == "g":
            return self.subgraph(value, graph, scope)
        return [self.subgraph(item, graph, scope) for item in value]

    def subgraph(self, proto: onnx.GraphProto, outer: Graph, scope: Scope) -> Graph:
        graph = Graph(opset=outer.opset, import_domains=outer.import_domains)
        graph.ir_version = outer.ir_version
        graph._functions = outer._functions
        self.graph(graph, proto, scope.new_child(), {})
        return graph

    def constant(self, proto: onnx.TensorProto | onnx.SparseTensorProto, raw: memoryview | None = None) -> gs.Constant:
        if isinstance(proto, onnx.SparseTensorProto):
            constant = gs.Constant(_name(proto.values.name), Sparse(proto))
        else:
            stored = Stored(proto, self.folder, raw)
            if stored.external:
                self.external.append(stored)
            constant = gs.Constant(_name(proto.name), stored)
        constant.origin = constant._values
        return constant


def opset_of(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    """Return the version of the standard operators; 1 where a model does not say, as the oldest do not."""
    return next((entry.version for entry in imports if not standard(entry.domain)), 1)


def _find(name: str, scope: Scope, local: bool = False) -> gs.Tensor:
    """Return the tensor called ``name``, a new one if there is none in the scope, or in the innermost if ``local``."""
    if not name:
        return gs.Variable.empty()
    for names in scope.maps[:1] if local else scope.maps:
        tensor = names.get(name)
        if tensor is not None:
            return tensor
    tensor = scope[name] = gs.Variable(_name(name))
    return tensor


def _name(name: str | bytes) -> str:
    if isinstance(name, bytes):  # what protobuf returns for text that is not UTF-8
        raise ModelError(f"the model has a name that is not UTF-8: {name!r}")
    return name


def _set_type(tensor: gs.Tensor | None, info: onnx.ValueInfoProto) -> None:
    if isinstance(tensor, gs.Variable) and info.type.WhichOneof("value"):
        dtype, shape, kind = describe(info)
        vars(tensor).update(dtype=dtype, shape=None if shape is None else list(shape), type=kind, origin=info)
