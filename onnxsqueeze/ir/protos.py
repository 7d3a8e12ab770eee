"""Parts of ONNX protos as Python values and back: domains, metadata and types; partial copies of messages."""

from __future__ import annotations

from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message  # type: ignore[import-untyped,unused-ignore]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped,unused-ignore]
from onnx import TensorProto, TypeProto, ValueInfoProto

from onnxsqueeze.ir.dtypes import element_type, numpy_type

__all__ = [
    "describe",
    "entries",
    "prepare_inference",
    "put",
    "put_entries",
    "put_names",
    "put_type",
    "same_type",
    "shell",
    "standard",
    "varint",
]

M = TypeVar("M", bound=Message)
_WHOLE = (TensorProto.INT32, TensorProto.INT64)
_AXES = 1 << 24
Described = tuple[Any, "tuple[int | str | None, ...] | None", "str | None"]
"""Element type, shape and kind of type."""


def shell(message: M, *without: str) -> M:
    """Return a copy of ``message`` without some fields, which are never copied; unknown fields are kept."""
    copy: M = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name in without:
            continue
        try:
            if isinstance(value, Message):
                getattr(copy, descriptor.name).CopyFrom(value)
            elif isinstance(value, (str, bytes, int, float)):
                setattr(copy, descriptor.name, value)
            else:
                getattr(copy, descriptor.name).extend(value)
        except UnicodeDecodeError:  # text that is not UTF-8 can be read, as bytes, but not set
            copy.ClearField(descriptor.name)
            for item in [value] if isinstance(value, bytes) else value:
                raw = item if isinstance(item, bytes) else item.encode()
                copy.MergeFromString(varint(descriptor.number << 3 | 2) + varint(len(raw)) + raw)
    unknown = _wire(UnknownFieldSet(message))
    if unknown:
        copy.MergeFromString(unknown)
    return copy


def _wire(fields: Any) -> bytes:
    """Return a set of unknown fields as bytes; ``Message`` has no other way to copy them."""
    out = bytearray()
    for item in fields:
        out += varint(item.field_number << 3 | item.wire_type)
        if item.wire_type == 0:
            out += varint(item.data)
        elif item.wire_type == 2:
            out += varint(len(item.data)) + item.data
        elif item.wire_type == 3:
            out += _wire(item.data) + varint(item.field_number << 3 | 4)
        else:
            out += int(item.data).to_bytes(8 if item.wire_type == 1 else 4, "little")
    return bytes(out)


def put(message: Any, field: str, value: Any) -> None:
    """Set a field unless it says ``value`` already, so that an absent field stays absent."""
    if getattr(message, field) != value:
        setattr(message, field, value)


def put_names(field: Any, tensors: Any) -> None:
    """Make a repeated string say the names of ``tensors``."""
    names = [tensor.name for tensor in tensors]
    if list(field) != names:
        del field[:]
        field.extend(names)


def standard(domain: str | None) -> str:
    """Return the domain with the alias ``ai.onnx`` (and None) written as the empty string."""
    return "" if domain in (None, "ai.onnx") else str(domain)


def entries(props: Any) -> dict[str, str]:
    """Return string-string entries as a dict; the last of equal keys wins."""
    return {entry.key: entry.value for entry in props}


def put_entries(props: Any, wanted: dict[str, str]) -> None:
    """Make string-string entries say ``wanted``; they are left as they are if they do already."""
    if entries(props) != wanted:
        del props[:]
        for key, value in wanted.items():
            props.add(key=key, value=value)


def describe(info: ValueInfoProto) -> Described:
    """Return element type, shape and kind of a type, in the terms of ``gs.Variable``.

    The element type is a NumPy type, the ONNX number where NumPy has none, or None; of a sequence or an optional it
    is that of the elements. The shape holds numbers, names and None. A map or an opaque type is known by its kind only.
    """
    kind = info.type.WhichOneof("value")
    tensor = _tensor_type(info.type)
    if tensor is None:
        return None, None, kind
    shape = tuple(map(_size, tensor.shape.dim)) if tensor.HasField("shape") else None
    return numpy_type(tensor.elem_type) or tensor.elem_type or None, shape, kind


def same_type(one: Described, other: Described) -> bool:
    """Whether two descriptions mean the same type, however their element types are written."""
    if one == other:
        return True
    if one[1:] != other[1:] or (one[0] is None) != (other[0] is None):
        return False
    return one[0] is None or element_type(one[0]) == element_type(other[0])


def put_type(info: ValueInfoProto, tensor: gs.Tensor) -> None:
    """Write element type and shape of ``tensor`` into ``info``, keeping docs, metadata and unchanged dimensions.

    Nothing is written where nothing is known; a map or an opaque type is never changed.
    """
    if tensor.dtype is None and tensor.shape is None:
        return
    kind = getattr(tensor, "type", None) or "tensor_type"
    if info.type.WhichOneof("value") != kind:
        info.type.ClearField(info.type.WhichOneof("value") or "value")
        if kind in ("sequence_type", "optional_type"):
            getattr(info.type, kind).elem_type.tensor_type.SetInParent()
        elif kind in ("tensor_type", "sparse_tensor_type"):
            getattr(info.type, kind).SetInParent()
    target = _tensor_type(info.type)
    if target is None:
        return
    if tensor.dtype is not None:
        put(target, "elem_type", element_type(tensor.dtype))
    if tensor.shape is None:
        target.ClearField("shape")
        return
    target.shape.SetInParent()
    dims = target.shape.dim
    del dims[len(tensor.shape) :]
    for index, size in enumerate(tensor.shape):
        dim = dims[index] if index < len(dims) else dims.add()
        if _size(dim) != size:
            _put_size(dim, size)


def _tensor_type(proto: TypeProto) -> Any:
    """Return the tensor type inside of a type, through sequences and optionals; None if there is none."""
    kind = proto.WhichOneof("value")
    while kind in ("sequence_type", "optional_type"):
        proto = getattr(proto, str(kind)).elem_type
        kind = proto.WhichOneof("value")
    return getattr(proto, str(kind)) if kind in ("tensor_type", "sparse_tensor_type") else None


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    kind = dim.WhichOneof("value")
    return None if kind is None else getattr(dim, kind)


def _put_size(dim: onnx.TensorShapeProto.Dimension, size: Any) -> None:
    dim.ClearField("dim_value")
    dim.ClearField("dim_param")
    if isinstance(size, str):
        dim.dim_param = size
    elif size is not None and size >= 0:
        dim.dim_value = int(size)


def prepare_inference(skeleton: onnx.ModelProto) -> None:
    """Let ONNX's shape inference see more of a model that is made for it alone, and not what it chokes on."""
    _bound_shapes(skeleton)
    _cast_scalers(skeleton)
    _declare_ranks(skeleton)


def _bound_shapes(skeleton: onnx.ModelProto) -> None:
    """Leave out lists of sizes and axes that are declared longer than any tensor has axes.

    ONNX 1.23 fills a list of as many axes for a Slice whose starts are declared to be 2**31 numbers.
    """
    graph = skeleton.graph
    read = {name for node in graph.node for name in node.input[node.op_type != "ConstantOfShape" :] if name}
    for info in (*graph.input, *graph.value_info):
        kind = info.type.tensor_type
        if info.name in read and kind.elem_type in _WHOLE and any(d.dim_value > _AXES for d in kind.shape.dim):
            kind.ClearField("shape")
    for i in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[i]
        if tensor.name in read and tensor.data_type in _WHOLE and any(size > _AXES for size in tensor.dims):
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, None))
            del graph.initializer[i]


def _cast_scalers(skeleton: onnx.ModelProto) -> None:
    """Let ONNX infer shapes behind operators of ``ai.onnx.ml`` that keep them: in a copy for inference, they are Casts.

    ONNX has no inference for Scaler, Imputer and Normalizer, whose outputs are float tensors of their input's shape.
    """
    for node in skeleton.graph.node:
        if node.domain == "ai.onnx.ml" and node.op_type in ("Scaler", "Imputer", "Normalizer"):
            node.op_type, node.domain = "Cast", ""
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))


def _declare_ranks(skeleton: onnx.ModelProto) -> None:
    """Tell ONNX's inference what a stored weight says of the output of a Gemm or Conv, whatever its input is.

    A Gemm makes two axes, the second as long as the weight has outputs; a Conv as many as its weight, the second
    likewise. What is declared already stays.
    """
    graph = skeleton.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    declared = {info.name for info in (*graph.value_info, *graph.output)}
    for node in graph.node:
        weight = stored.get(node.input[1]) if len(node.input) > 1 and node.domain in ("", "ai.onnx") else None
        if weight is None or node.op_type not in ("Gemm", "Conv") or node.output[0] in declared:
            continue
        if len(weight.dims) < 2:
            continue
        first = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        rank = 2 if node.op_type == "Gemm" else len(weight.dims)
        shape = [None, weight.dims[0 if first else 1], *[None] * (rank - 2)]
        graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], weight.data_type, shape))


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
