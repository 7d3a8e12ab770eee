"""Graph objects to ONNX protos; what still says what its source said is copied from there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto
from onnx_graphsurgeon.util.misc import convert_to_onnx_attr_type

from onnxsqueeze.ir.attributes import FIELDS, LongList, field_of, kind_of, says
from onnxsqueeze.ir.objects import Graph, Source, subgraphs
from onnxsqueeze.ir.payloads import Inline, Skeleton, put_tensor, unchanged
from onnxsqueeze.ir.protos import describe, put, put_entries, put_names, put_type, same_type, shell, standard
from onnxsqueeze.ir.weights import Sparse, Stored, Weight, encoded

__all__ = ["encode", "encode_with", "tensor_proto"]

Body = onnx.GraphProto | onnx.FunctionProto
Typed = tuple[gs.Tensor, onnx.ValueInfoProto]
Info = onnx.ValueInfoProto | None


def encode(graph: gs.Graph, *, skeleton: bool = False) -> onnx.ModelProto:
    """Return the model of ``graph``, in memory; an unchanged graph gives the model that it was decoded from.

    External data that was not replaced stays a reference into ``graph.folder``. With ``skeleton`` weights of more than
    1 KiB that are no shapes become references to a file that does not exist, none of them is read, and of long lists
    of ``ai.onnx.ml`` one value stays: enough for shape inference, and small whatever the weights weigh.
    """
    return encode_with(graph, Skeleton() if skeleton else Inline())


def encode_with(graph: gs.Graph, placement: Inline) -> onnx.ModelProto:
    """Return the model of ``graph`` with the bytes of its weights where ``placement`` puts them."""
    return _Encoder(placement).model(graph)


def tensor_proto(constant: gs.Constant) -> onnx.TensorProto:
    """Return ``constant`` as an initializer with its data in it, wherever the data stood."""
    out = onnx.TensorProto()
    put_tensor(out, constant, _Whole())
    return out


class _Whole(Inline):
    def keeps(self, weight: Stored) -> bool:
        return weight.raw is None and not weight.external


class _Encoder:
    def __init__(self, placement: Inline) -> None:
        self.placement = placement
        self.ir_version = 0
        self.present: set[int] = set()
        """The ids of the tensors that nodes, inputs and outputs use, in any graph."""
        self.new: dict[int, list[gs.Constant]] = {}
        """The constants that no source graph owns, by the id of the graph that they are written to."""
        self.domains: set[str] = set()
        """The domains of nodes that the source did not have."""

    def model(self, graph: gs.Graph) -> onnx.ModelProto:
        source = getattr(graph, "model", None)
        model = onnx.ModelProto() if source is None else shell(source)
        put(model, "producer_name", graph.producer_name or "")
        put(model, "producer_version", graph.producer_version or "")
        if getattr(graph, "ir_version", None):  # the oldest graphsurgeon has none
            put(model, "ir_version", graph.ir_version)
        elif not model.ir_version and source is None:
            imports = [onnx.helper.make_opsetid("", graph.opset), *(graph.import_domains or ())]
            model.ir_version = max(4, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))
        self.ir_version = model.ir_version
        for function in graph.functions:
            self.function(model.functions.add(), function)
        self.domains.clear()
        self.assign(graph)
        self.graph(model.graph, graph, main=True)
        self.opsets(model.opset_import, graph)
        if source is not None:
            put_entries(model.metadata_props, graph.metadata)
        return model

    def assign(self, graph: gs.Graph) -> None:
        """Find out which constants are used in ``graph`` and its bodies, and where the new ones go."""
        for constant, owner in self.needs(graph).values():
            self.new.setdefault(id(owner), []).append(constant)

    def needs(self, graph: gs.Graph) -> dict[int, tuple[gs.Constant, gs.Graph]]:
        """Return the constants used but not owned by ``graph``, each with the innermost graph around all its users."""
        self.present.update(map(id, (*graph.inputs, *graph.outputs)))
        found = {id(tensor): (tensor, graph) for tensor in graph.outputs if isinstance(tensor, gs.Constant)}
        for node in graph.nodes:
            self.present.update(map(id, (*node.inputs, *node.outputs)))
            found.update({id(tensor): (tensor, graph) for tensor in node.inputs if isinstance(tensor, gs.Constant)})
            for body in subgraphs(node):
                for key, (constant, owner) in self.needs(body).items():
                    found[key] = constant, graph if key in found else owner
        for constant in _source(graph).initializers:
            found.pop(id(constant), None)
        return found

    def graph(self, out: onnx.GraphProto, graph: gs.Graph, main: bool = False) -> None:
        source = _source(graph)
        if isinstance(graph, Graph) and graph.proto is not None:
            out.CopyFrom(graph.proto)
            if not main:
                put_entries(out.metadata_props, graph.metadata)
        put(out, "name", graph.name or "")
        put(out, "doc_string", graph.doc_string or "")
        constants = self.initializers(out, graph, main)
        self.inputs(out, graph, constants)
        for tensor, info in _with_infos(graph.outputs, source.outputs):
            _put_info(out.output.add(), tensor, info)
        self.body(out, graph)
        for tensor, annotation in source.annotations:
            if tensor is None or id(tensor) in self.present:
                added = out.quantization_annotation.add()
                added.CopyFrom(annotation)
                put(added, "tensor_name", annotation.tensor_name if tensor is None else tensor.name)

    def initializers(self, out: onnx.GraphProto, graph: gs.Graph, main: bool) -> list[gs.Constant]:
        """Write the constants of ``graph`` and return them: what it owned and still uses, then what is new."""
        spare = set(map(id, getattr(graph, "spare", ())))
        constants = [
            constant
            for constant in _source(graph).initializers
            if isinstance(constant, gs.Constant)
            and (id(constant) in self.present or id(constant) in spare or getattr(constant, "overridable", False))
        ]
        new = self.new.get(id(graph), [])
        if main or self.ir_version >= 4:
            constants += new
        else:  # before IR version 4 an initializer would have to be an input of the body, too
            self.constant_nodes(out, new)
        self.present.update(map(id, constants))
        for constant in constants:
            if isinstance(getattr(constant, "origin", None), Sparse) and unchanged(constant):
                sparse = out.sparse_initializer.add()
                sparse.CopyFrom(constant.origin.proto)
                put(sparse.values, "name", constant.name)
            else:
                put_tensor(out.initializer.add(), constant, self.placement, len(out.initializer) - 1 if main else None)
        return constants

    def inputs(self, out: onnx.GraphProto, graph: gs.Graph, constants: list[gs.Constant]) -> None:
        """Write the inputs; constants that are listed too keep their place among them."""
        source = _source(graph).inputs
        listed = {id(item) for item in constants if self.ir_version < 4 or getattr(item, "overridable", False)}
        fed = [(tensor, info) for tensor, info in source if not _was_constant(tensor)]
        waiting = _with_infos(graph.inputs, fed)
        for tensor, info in source:
            if _was_constant(tensor):
                if id(tensor) in listed:
                    _put_info(out.input.add(), tensor, info)
            elif (following := next(waiting, None)) is not None:
                _put_info(out.input.add(), *following)
        for following in waiting:
            _put_info(out.input.add(), *following)
        if self.ir_version < 4:
            new = set(map(id, self.new.get(id(graph), ())))
            for constant in constants:
                if id(constant) in new:
                    _put_info(out.input.add(), constant, None)

    def body(self, out: Body, graph: gs.Graph) -> None:
        """Write the nodes and the types of what they compute."""
        for node in graph.nodes:
            self.node(out.node.add(), node)
        typed = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        for tensor, info in _source(graph).value_info:
            if tensor is None:
                out.value_info.add().CopyFrom(info)
            elif id(tensor) in self.present and _was_constant(tensor) == isinstance(tensor, gs.Constant):
                _put_info(out.value_info.add(), tensor, info)
                typed.add(id(tensor))
        for node in graph.nodes:
            for tensor in node.outputs:
                if isinstance(tensor, gs.Variable) and tensor.dtype is not None and id(tensor) not in typed:
                    typed.add(id(tensor))
                    _put_info(out.value_info.add(), tensor, None)

    def function(self, out: onnx.FunctionProto, function: gs.Function) -> None:
        proto = getattr(function, "proto", None)
        if proto is not None:
            out.CopyFrom(proto)
            put_entries(out.metadata_props, function.metadata)
        put(out, "name", function.name or "")
        put(out, "domain", function.domain or "")
        put(out, "doc_string", function.doc_string or "")
        if getattr(function, "overload", ""):
            out.overload = function.overload
        put_names(out.input, function.inputs)
        put_names(out.output, function.outputs)
        defaults = {attribute.name: attribute for attribute in getattr(function, "defaults", ())}
        self.domains.clear()
        self.assign(function)
        for name, value in function.attrs.items():
            if value is None:
                out.attribute.append(name)
            else:
                self.attribute(out.attribute_proto.add(), name, value, defaults.get(name))
        self.constant_nodes(out, self.new.get(id(function), []))
        self.body(out, function)
        self.opsets(out.opset_import, function)

    def constant_nodes(self, out: Body, constants: Iterable[gs.Constant]) -> None:
        for constant in constants:
            node = out.node.add(op_type="Constant", output=[constant.name])
            put_tensor(node.attribute.add(name="value", type=AttributeProto.TENSOR).t, constant, self.placement)

    def opsets(self, imports: Any, graph: gs.Graph) -> None:
        """Write the operator sets: the imports of ``graph``, its ``opset`` and the domains of new nodes."""
        wanted = list(graph.import_domains or ())
        if list(imports) != wanted:
            del imports[:]
            imports.extend(wanted)
        domains = {standard(entry.domain) for entry in imports}
        if "" in domains:
            put(next(entry for entry in imports if not standard(entry.domain)), "version", graph.opset)
        elif "" in self.domains or not (isinstance(graph, gs.Function) or graph.opset == 1):
            imports.add(domain="", version=graph.opset)
        for domain in sorted(self.domains - domains - {""}):
            imports.add(domain=domain, version=1)

    def node(self, out: onnx.NodeProto, node: gs.Node) -> None:
        proto = getattr(node, "proto", None)
        if proto is None:
            proto = onnx.NodeProto()
        if self.placement.cuts(node):
            out.CopyFrom(shell(proto, "attribute"))
            self.attributes(out, node, proto)
        elif self.same_attributes(node, proto):
            out.CopyFrom(proto)
        else:
            out.CopyFrom(shell(proto, "attribute"))
            self.attributes(out, node, proto)
        if out.op_type != node.op or standard(out.domain) != standard(node.domain):
            self.domains.add(standard(node.domain))
            put(out, "domain", standard(node.domain))
        put(out, "op_type", node.op)
        put(out, "name", node.name or "")
        put_names(out.input, node.inputs)
        put_names(out.output, node.outputs)

    def same_attributes(self, node: gs.Node, proto: onnx.NodeProto) -> bool:
        return len(node.attrs) == len(proto.attribute) and all(
            item.name == name and self.same(value, item)
            for item, (name, value) in zip(proto.attribute, node.attrs.items(), strict=True)
        )

    def attributes(self, out: onnx.NodeProto, node: gs.Node, proto: onnx.NodeProto) -> None:
        last = {item.name: index for index, item in enumerate(proto.attribute)}
        for index, item in enumerate(proto.attribute):
            if item.name not in node.attrs:
                continue
            if last[item.name] == index:
                self.attribute(out.attribute.add(), item.name, node.attrs[item.name], item)
            else:
                out.attribute.add().CopyFrom(item)  # a repeated name: only the last one was decoded
        for name, value in node.attrs.items():
            if name not in last:
                self.attribute(out.attribute.add(), name, value, None)

    def same(self, value: Any, proto: AttributeProto) -> bool:
        """Whether ``proto`` can be copied for ``value``; a graph is always encoded, its insides may have changed."""
        field = field_of(proto)
        if field in ("g", "graphs"):
            return False
        if field not in ("t", "tensors"):
            return says(proto, value)
        values = value if isinstance(value, list) else [value]
        protos = [proto.t] if field == "t" else list(proto.tensors)
        return len(values) == len(protos) and all(map(self.same_tensor, values, protos))

    def same_tensor(self, value: Any, proto: onnx.TensorProto) -> bool:
        if not isinstance(value, gs.Constant) or value.name != proto.name:
            return False
        stored = unchanged(value)
        return isinstance(stored, Stored) and stored.proto is proto and self.placement.keeps(stored)

    def attribute(self, out: AttributeProto, name: str, value: Any, proto: AttributeProto | None) -> None:
        if isinstance(value, LongList):
            put(out, "name", name)
            self.placement.put_list(out, value)
            return
        if isinstance(value, AttributeProto) or (proto is not None and self.same(value, proto)):
            out.CopyFrom(value if isinstance(value, AttributeProto) else proto)
            put(out, "name", name)
            return
        reference = isinstance(value, gs.Node.AttributeRef)
        kind = convert_to_onnx_attr_type(value.type) if reference else kind_of(name, value, proto.type if proto else 0)
        field = FIELDS.get(kind, "")
        if proto is not None:
            stale = (field,) if field == field_of(proto) and not reference else ("ref_attr_name", *FIELDS.values())
            out.CopyFrom(shell(proto, *stale))
        put(out, "name", name)
        if proto is None or proto.type:  # the oldest files have none
            put(out, "type", kind)
        if reference:
            out.ref_attr_name = value.name
            return
        if field == "g":
            out.g.SetInParent()
            self.graph(out.g, value)
        elif field == "t":
            put_tensor(out.t, _constant(value), self.placement)
        elif field in ("graphs", "tensors"):
            for item in value:
                if field == "graphs":
                    self.graph(out.graphs.add(), item)
                else:
                    put_tensor(out.tensors.add(), _constant(item), self.placement)
        elif field in ("sparse_tensor", "tp"):
            getattr(out, field).CopyFrom(value)
        elif field == "s":
            out.s = encoded(value)
        elif field == "strings":
            out.strings.extend(map(encoded, value))
        elif field in ("f", "i"):
            setattr(out, field, float(value) if field == "f" else int(value))
        else:
            getattr(out, field).extend(np.asarray(value).tolist() if field in ("ints", "floats") else value)


def _source(graph: gs.Graph) -> Source:
    return graph.source if isinstance(graph, Graph) else Source()


def _with_infos(tensors: Iterable[gs.Tensor], source: list[Typed]) -> Iterator[tuple[gs.Tensor, Info]]:
    """Yield the tensors with their types in the source: that of the same place, or the first of the tensor, or None."""
    infos = {id(tensor): info for tensor, info in reversed(source)}
    for index, tensor in enumerate(tensors):
        same_place = index < len(source) and source[index][0] is tensor
        yield tensor, source[index][1] if same_place else infos.get(id(tensor))


def _was_constant(tensor: gs.Tensor) -> bool:
    return isinstance(getattr(tensor, "origin", None), Weight)


def _constant(value: Any) -> gs.Constant:
    return value if isinstance(value, gs.Constant) else gs.Constant("", np.asarray(value))


def _put_info(out: onnx.ValueInfoProto, tensor: gs.Tensor, info: Info) -> None:
    """Write name and type of ``tensor``: the source ``info``, changed where the type is not what it was at load."""
    origin = getattr(tensor, "origin", None)
    if info is None and isinstance(origin, onnx.ValueInfoProto):
        info = origin
    if info is not None:
        out.CopyFrom(info)
    put(out, "name", tensor.name)
    if isinstance(tensor, gs.Constant):
        now = tensor.dtype, tuple(tensor.shape), "tensor_type"
        if info is None or not (isinstance(origin, Weight) and same_type((origin.dtype, origin.shape, now[2]), now)):
            put_type(out, tensor)
        return
    shape = None if tensor.shape is None else tuple(tensor.shape)
    before = describe(origin) if isinstance(origin, onnx.ValueInfoProto) else (None, None, "tensor_type")
    if not same_type(before, (tensor.dtype, shape, tensor.type)):
        put_type(out, tensor)
