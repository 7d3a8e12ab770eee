"""Graph objects to ONNX protos; what still says what its source said is copied from there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.ir.function import Function as GsFunction
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import convert_to_onnx_attr_type

from onnxsqueeze.errors import ModelError
from onnxsqueeze.graph import Source
from onnxsqueeze.protos import (
    ATTRIBUTE_FIELDS,
    attribute_field,
    describe,
    plain,
    put_entries,
    put_type,
    shell,
    standard,
)
from onnxsqueeze.weights import Derived, Sparse, Stored, Weight, element_type

__all__ = ["Placement", "encode", "encode_with"]

_DATA = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "external_data",
    "segment",
)
SMALL = 1024
"""Weights below this many bytes always stand in the model itself."""


class Placement(Protocol):
    """Where the bytes of weights go."""

    def keeps(self, weight: Stored) -> bool:
        """Whether the source proto of an unchanged weight can be copied as it is."""

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        """Give ``tensor``, which has all but its data, the data of ``weight``; ``index`` counts top-level initializers."""


class Inline:
    """Puts every changed weight into the model and leaves external data where it is."""

    def keeps(self, weight: Stored) -> bool:
        return weight.raw is None

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        tensor.raw_data = bytes(weight.data())


class Skeleton(Inline):
    """Leaves out the big float weights, which shape inference never reads."""

    def keeps(self, weight: Stored) -> bool:
        return weight.raw is None and not weight.external and not self._drops(weight)

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        if not self._drops(weight):
            return super().place(tensor, weight, index)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="skeleton-without-weights")
        tensor.external_data.add(key="length", value=str(weight.nbytes))
        return None

    @staticmethod
    def _drops(weight: Weight) -> bool:
        return weight.nbytes > SMALL and weight.dtype.kind not in "iubO"


def encode(graph: gs.Graph, *, skeleton: bool = False) -> onnx.ModelProto:
    """Return the model of ``graph``, in memory; an unchanged graph gives the model that it was decoded from.

    External data that was not replaced stays a reference into ``graph.folder``. With ``skeleton`` the float weights
    of more than 1 KiB become references to a file that does not exist and no such weight is read: enough for shape
    inference, and below 2 GB whatever the weights weigh.
    """
    return encode_with(graph, Skeleton() if skeleton else Inline())


def encode_with(graph: gs.Graph, placement: Placement) -> onnx.ModelProto:
    """Return the model of ``graph`` with the bytes of its weights where ``placement`` puts them."""
    return _Encoder(placement).model(graph)


class _Encoder:
    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.landing: dict[int, list[gs.Constant]] = {}
        self.alive: set[int] = set()
        self.domains: set[str] = set()

    def model(self, graph: gs.Graph) -> onnx.ModelProto:
        model = onnx.ModelProto()
        source = getattr(graph, "model", None)
        if source is not None:
            model.CopyFrom(source)
        _put(model, "producer_name", graph.producer_name or "")
        _put(model, "producer_version", graph.producer_version or "")
        for function in graph.functions:
            self.function(model.functions.add(), function)
        self.domains.clear()
        self.land(graph)
        self.ir_version = graph.ir_version or model.ir_version or 0
        self.graph(model.graph, graph, top=True)
        self.opsets(model.opset_import, graph)
        if not self.ir_version:
            self.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
        _put(model, "ir_version", self.ir_version)
        if source is not None:
            put_entries(model.metadata_props, graph.metadata)
        return model

    # -- who owns which constant -------------------------------------------------------------------------------------

    def land(self, graph: gs.Graph) -> None:
        """Decide in which graph each constant is written that no source graph in scope owns already."""
        for constant, owner in self.needs(graph).values():
            self.landing.setdefault(id(owner), []).append(constant)

    def needs(self, graph: gs.Graph) -> dict[int, tuple[gs.Constant, gs.Graph]]:
        """Return the constants that ``graph`` and its bodies use and do not own, each with the place to put it."""
        found: dict[int, tuple[gs.Constant, gs.Graph]] = {}
        for node in graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant):
                    found[id(tensor)] = tensor, graph
            for body in _subgraphs(node):
                for key, (constant, owner) in self.needs(body).items():
                    found[key] = constant, graph if key in found else owner
        for tensor in graph.outputs:
            if isinstance(tensor, gs.Constant):
                found[id(tensor)] = tensor, graph
        self.alive.update(found)
        for constant in _source(graph).initializers:
            found.pop(id(constant), None)
        return found

    # -- graphs ------------------------------------------------------------------------------------------------------

    def graph(self, out: onnx.GraphProto, graph: gs.Graph, top: bool = False) -> None:
        source = _source(graph)
        proto = getattr(graph, "proto", None)
        if proto is not None:
            out.CopyFrom(proto)
        _put(out, "name", graph.name or "")
        _put(out, "doc_string", graph.doc_string or "")
        if proto is not None and not top:
            put_entries(out.metadata_props, graph.metadata)
        spare = {id(constant) for constant in getattr(graph, "spare", ())}
        constants = [
            constant
            for constant in source.initializers
            if isinstance(constant, gs.Constant) and (id(constant) in self.alive or id(constant) in spare)
        ]
        new = self.landing.get(id(graph), [])
        if top or self.ir_version >= 4:
            constants += new
        else:
            self.constant_nodes(out, new)  # before IR version 4 an initializer of a body would have to be its input
        for constant in constants:
            if isinstance(_unchanged(constant), Sparse):
                sparse = out.sparse_initializer.add()
                sparse.CopyFrom(constant._values.proto)
                _put(sparse.values, "name", constant.name)
            else:
                self.tensor(out.initializer.add(), constant, len(out.initializer) - 1 if top else None)
        self.inputs(out, graph, constants, top)
        infos = {id(tensor): info for tensor, info in reversed(source.outputs)}
        for tensor in graph.outputs:
            _info(out.output.add(), tensor, infos)
        self.body(out, graph, constants)
        present = {id(tensor) for tensor in _tensors(graph, constants)}
        for tensor, annotation in source.quantized:
            if tensor is None or id(tensor) in present:
                out.quantization_annotation.add().CopyFrom(annotation)
                if tensor is not None:
                    _put(out.quantization_annotation[-1], "tensor_name", tensor.name)

    def inputs(self, out: onnx.GraphProto, graph: gs.Graph, constants: list[gs.Constant], top: bool) -> None:
        """Write the inputs; constants that are listed too keep their place among them."""
        source = _source(graph)
        infos = {id(tensor): info for tensor, info in reversed(source.inputs)}
        listed = {
            id(constant) for constant in constants if self.ir_version < 4 or getattr(constant, "overridable", False)
        }
        waiting = list(reversed(graph.inputs))
        for tensor, info in source.inputs:
            if isinstance(getattr(tensor, "origin", None), Weight):
                if id(tensor) in listed:
                    _info(out.input.add(), tensor, {id(tensor): info})
            elif waiting:
                _info(out.input.add(), waiting.pop(), infos)
        while waiting:
            _info(out.input.add(), waiting.pop(), infos)
        if top and self.ir_version < 4:
            for constant in self.landing.get(id(graph), []):
                _info(out.input.add(), constant, {})

    def body(self, out: onnx.GraphProto | onnx.FunctionProto, graph: gs.Graph, constants: list[gs.Constant]) -> None:
        for node in graph.nodes:
            self.node(out.node.add(), node)
        source = _source(graph)
        present = {id(tensor) for tensor in _tensors(graph, constants)}
        done = set(map(id, graph.inputs)) | set(map(id, graph.outputs))
        for tensor, info in source.value_info:
            if tensor is None:
                out.value_info.add().CopyFrom(info)
            elif id(tensor) in present and _was_constant(tensor) == isinstance(tensor, gs.Constant):
                _info(out.value_info.add(), tensor, {id(tensor): info})
                done.add(id(tensor))
        for node in graph.nodes:
            for tensor in node.outputs:
                if isinstance(tensor, gs.Variable) and tensor.dtype is not None and id(tensor) not in done:
                    done.add(id(tensor))
                    _info(out.value_info.add(), tensor, {})

    def function(self, out: onnx.FunctionProto, function: GsFunction) -> None:
        proto = getattr(function, "proto", None)
        if proto is not None:
            out.CopyFrom(proto)
            put_entries(out.metadata_props, function.metadata)
        _put(out, "name", function.name)
        _put(out, "domain", function.domain or "")
        _put(out, "doc_string", function.doc_string or "")
        _put(out, "overload", getattr(function, "overload", ""))
        out.input.extend(tensor.name for tensor in function.inputs)
        out.output.extend(tensor.name for tensor in function.outputs)
        defaults = {item.name: item for item in getattr(function, "defaults", ())}
        for name, value in function.attrs.items():
            if value is None:
                out.attribute.append(name)
            else:
                self.attribute(out.attribute_proto.add(), name, value, defaults.get(name))
        self.domains.clear()
        self.ir_version = function.ir_version or 8
        self.land(function)
        self.constant_nodes(out, self.landing.get(id(function), []))
        self.body(out, function, [])
        self.opsets(out.opset_import, function)

    def constant_nodes(self, out: onnx.GraphProto | onnx.FunctionProto, constants: list[gs.Constant]) -> None:
        for constant in constants:
            node = out.node.add(op_type="Constant", output=[constant.name])
            attribute = node.attribute.add(name="value", type=AttributeProto.TENSOR)
            self.tensor(attribute.t, constant)

    def opsets(self, imports: Any, graph: gs.Graph) -> None:
        """Write the operator sets: the imports of ``graph``, its ``opset`` and the domains of new nodes."""
        wanted = list(graph.import_domains or ())
        if list(imports) != wanted:
            del imports[:]
            imports.extend(wanted)
        standards = [entry for entry in imports if not standard(entry.domain)]
        for entry in standards[:1]:
            _put(entry, "version", graph.opset)
        if not standards and ("" in self.domains or (graph.opset != 1 and not isinstance(graph, GsFunction))):
            imports.add(domain="", version=graph.opset)
        known = {standard(entry.domain) for entry in imports}
        for domain in sorted(self.domains - known - {""}):
            imports.add(domain=domain, version=1)

    # -- nodes and attributes ----------------------------------------------------------------------------------------

    def node(self, out: onnx.NodeProto, node: gs.Node) -> None:
        proto = getattr(node, "proto", None)
        if proto is None:
            proto = onnx.NodeProto()
        if proto is not None and self.same_attributes(node, proto):
            out.CopyFrom(proto)
        else:
            out.CopyFrom(shell(proto, "attribute"))
            self.attributes(out, node, proto)
        _put(out, "op_type", node.op)
        _put(out, "name", node.name or "")
        if standard(node.domain) != standard(out.domain) or not out.op_type:
            out.domain = standard(node.domain)
        _put_names(out.input, node.inputs)
        _put_names(out.output, node.outputs)
        if proto.op_type != node.op or standard(proto.domain) != standard(node.domain):
            self.domains.add(standard(node.domain))

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
            if last[item.name] != index:
                out.attribute.add().CopyFrom(item)  # a repeated name: only the last one was decoded
            else:
                self.attribute(out.attribute.add(), item.name, node.attrs[item.name], item)
        for name, value in node.attrs.items():
            if name not in last:
                self.attribute(out.attribute.add(), name, value, None)

    def same(self, value: Any, proto: onnx.AttributeProto) -> bool:
        """Whether ``proto`` says ``value`` already; never so for graphs, whose insides may have changed."""
        field = attribute_field(proto)
        if not proto.ref_attr_name and field in ("g", "graphs"):
            return False
        if not proto.ref_attr_name and field in ("t", "tensors"):
            values = value if isinstance(value, list) else [value]
            protos = proto.tensors if field == "tensors" else [proto.t]
            return len(values) == len(protos) and all(
                isinstance(item, gs.Constant)
                and isinstance(stored := _unchanged(item), Stored)
                and stored.proto is mine
                and item.name == mine.name
                and self.placement.keeps(stored)
                for item, mine in zip(values, protos, strict=True)
            )
        decoded = plain(proto)
        if isinstance(decoded, (int, float, str, bytes, list)):
            return type(decoded) is type(value) and repr(decoded) == repr(value)
        return bool(type(decoded) is type(value) and decoded == value)

    def attribute(self, out: onnx.AttributeProto, name: str, value: Any, proto: onnx.AttributeProto | None) -> None:
        if proto is not None and self.same(value, proto):
            out.CopyFrom(proto)
            return
        if proto is not None:
            out.CopyFrom(shell(proto, "ref_attr_name", *ATTRIBUTE_FIELDS.values()))
        out.name = name
        if isinstance(value, AttributeProto):
            out.CopyFrom(value)
            out.name = name
            return
        if isinstance(value, gs.Node.AttributeRef):
            out.ref_attr_name = value.name
            _put(out, "type", convert_to_onnx_attr_type(value.type))
            return
        kind = _attribute_type(name, value, out.type)
        _put(out, "type", kind)
        field = ATTRIBUTE_FIELDS[kind]
        if field == "g":
            out.g.SetInParent()
            self.graph(out.g, value)
        elif field == "graphs":
            for item in value:
                self.graph(out.graphs.add(), item)
        elif field == "t":
            self.tensor(out.t, _as_constant(value))
        elif field == "tensors":
            for item in value:
                self.tensor(out.tensors.add(), _as_constant(item))
        elif field in ("sparse_tensor", "tp"):
            getattr(out, field).CopyFrom(value)
        elif field == "s":
            out.s = _bytes(value)
        elif field == "strings":
            out.strings.extend(map(_bytes, value))
        elif field in ("f", "i"):
            setattr(out, field, float(value) if field == "f" else int(value))
        else:
            getattr(out, field).extend(np.asarray(value).tolist() if field in ("ints", "floats") else value)

    # -- tensors -----------------------------------------------------------------------------------------------------

    def tensor(self, out: TensorProto, constant: gs.Constant, index: int | None = None) -> None:
        stored = _unchanged(constant)
        if isinstance(stored, Stored) and (stored.dtype.kind == "O" or self.placement.keeps(stored)):
            out.CopyFrom(stored.proto)
            _put(out, "name", constant.name)
            return
        origin = getattr(constant, "origin", None)
        if isinstance(origin, Stored):
            out.CopyFrom(shell(origin.proto, *_DATA, *(("data_location",) if origin.external else ())))
        _put(out, "name", constant.name)
        weight = stored or _weight(constant)
        if not isinstance(stored, Stored):
            del out.dims[:]
            out.dims.extend(weight.shape)
            out.data_type = element_type(weight.dtype)
        if weight.dtype.kind in "OUST":
            out.string_data.extend(_bytes(item) for item in np.ravel(weight.load()))
        else:
            self.placement.place(out, weight, index)


def _source(graph: gs.Graph) -> Source:
    return graph.source if "source" in vars(graph) else Source()


def _subgraphs(node: gs.Node) -> Iterable[gs.Graph]:
    for value in node.attrs.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, gs.Graph):
                yield item


def _tensors(graph: gs.Graph, constants: list[gs.Constant]) -> Iterable[gs.Tensor]:
    yield from constants
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs


def _was_constant(tensor: gs.Tensor) -> bool:
    return isinstance(getattr(tensor, "origin", None), Weight)


def _unchanged(constant: gs.Constant) -> Weight | None:
    """Return the source of the values of ``constant`` if it still holds them, pinned or not."""
    origin = getattr(constant, "origin", None)
    values = constant._values
    if not isinstance(origin, Weight) or constant._export_dtype is not None:
        return None
    if values is origin:
        return origin
    if isinstance(values, np.ndarray) and values.shape == origin.shape and values.dtype == origin.dtype:
        before = origin.peek()
        same = np.array_equal(before, values) if values.dtype.kind == "O" else before.tobytes() == values.tobytes()
        return origin if same else None
    return None


def _weight(constant: gs.Constant) -> Weight:
    """Return the values of ``constant`` as a weight, converted to its export type if it has one."""
    values = constant._values
    if isinstance(values, Weight) and constant._export_dtype is None:
        return values
    array = values.load() if isinstance(values, LazyValues) else np.asarray(values)
    if constant._export_dtype is not None:
        from onnxsqueeze.weights import numpy_type

        wanted = constant._export_dtype
        array = array.astype(numpy_type(wanted) if isinstance(wanted, int) else wanted)
    return Derived(array.shape, array.dtype, lambda: array)


def _as_constant(value: Any) -> gs.Constant:
    return value if isinstance(value, gs.Constant) else gs.Constant("", np.asarray(value))


def _bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _attribute_type(name: str, value: Any, before: int) -> int:
    """Return the attribute type for a Python value; the one it had before where that fits."""
    if isinstance(value, (list, tuple, np.ndarray)) and not (isinstance(value, np.ndarray) and value.ndim != 1):
        if isinstance(value, np.ndarray) and before == AttributeProto.TENSOR:
            return before
        if len(value) == 0:
            return before if before >= AttributeProto.FLOATS else AttributeProto.INTS
        kinds = {_attribute_type(name, item, 0) for item in value}
        if kinds == {AttributeProto.INT, AttributeProto.FLOAT} or (
            kinds == {AttributeProto.INT} and before == AttributeProto.FLOATS
        ):
            kinds = {AttributeProto.FLOAT}
        plural = {
            AttributeProto.SPARSE_TENSOR: AttributeProto.SPARSE_TENSORS,
            AttributeProto.TYPE_PROTO: AttributeProto.TYPE_PROTOS,
        }
        if len(kinds) == 1:
            (kind,) = kinds
            return plural.get(kind, kind + 5)
    elif isinstance(value, (str, bytes)):
        return AttributeProto.STRING
    elif isinstance(value, (bool, int, np.integer, np.bool_)):
        return AttributeProto.FLOAT if before == AttributeProto.FLOAT else AttributeProto.INT
    elif isinstance(value, (float, np.floating)):
        return AttributeProto.FLOAT
    elif isinstance(value, (gs.Constant, np.ndarray)):
        return AttributeProto.TENSOR
    elif isinstance(value, gs.Graph):
        return AttributeProto.GRAPH
    elif isinstance(value, onnx.SparseTensorProto):
        return AttributeProto.SPARSE_TENSOR
    elif isinstance(value, onnx.TypeProto):
        return AttributeProto.TYPE_PROTO
    raise ModelError(f"attribute {name!r} has a value of type {type(value).__name__}, which ONNX cannot hold")


def _info(out: onnx.ValueInfoProto, tensor: gs.Tensor, infos: dict[int, onnx.ValueInfoProto]) -> None:
    """Write name and type of ``tensor``, from its source as long as the type is what it was."""
    origin = getattr(tensor, "origin", None)
    info = infos.get(id(tensor), origin)
    if isinstance(info, onnx.ValueInfoProto):
        out.CopyFrom(info)
    _put(out, "name", tensor.name)
    if isinstance(tensor, gs.Constant):
        now: Any = tensor.dtype, tuple(tensor.shape), "tensor_type"
        before = (origin.dtype, origin.shape, "tensor_type") if isinstance(origin, Weight) else None
    else:
        now = tensor.dtype, None if tensor.shape is None else tuple(tensor.shape), tensor.type
        before = describe(origin) if isinstance(origin, onnx.ValueInfoProto) else (None, None, "tensor_type")
    if before is None or not _same_type(before, now):
        put_type(out, tensor)


def _same_type(before: Any, now: Any) -> bool:
    if before[1:] != now[1:] or (before[0] is None) != (now[0] is None):
        return False
    return before[0] is None or element_type(before[0]) == element_type(now[0])


def _put(message: Any, field: str, value: Any) -> None:
    """Set a field unless it says ``value`` already, so that an absent field stays absent."""
    if getattr(message, field) != value:
        setattr(message, field, value)


def _put_names(field: Any, tensors: Iterable[gs.Tensor]) -> None:
    names = [tensor.name for tensor in tensors]
    if list(field) != names:
        del field[:]
        field.extend(names)
