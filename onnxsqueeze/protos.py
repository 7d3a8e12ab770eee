"""Small conversions between parts of ONNX protos and Python values, each the inverse of another."""

from __future__ import annotations

from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import AttributeProto, TypeProto, ValueInfoProto
from onnx_graphsurgeon.util.misc import convert_from_onnx_attr_type

from onnxsqueeze.weights import element_type, numpy_type, text

__all__ = ["attribute_field", "describe", "entries", "kind", "plain", "put_entries", "put_type", "shell", "standard"]

M = TypeVar("M", bound=Message)
Described = tuple[Any, "tuple[int | str | None, ...] | None", str | None]


def shell(message: M, *without: str) -> M:
    """Return a copy of ``message`` without some fields, which are never copied; unknown fields are kept."""
    copy = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name in without:
            continue
        if isinstance(value, Message):
            getattr(copy, descriptor.name).CopyFrom(value)
        elif isinstance(value, (str, bytes, int, float)):
            setattr(copy, descriptor.name, value)
        else:
            getattr(copy, descriptor.name).extend(value)
    unknown = _unknown(UnknownFieldSet(message))
    if unknown:
        copy.MergeFromString(unknown)
    return copy


def _unknown(fields: Any) -> bytes:
    """Return the wire form of a set of unknown fields."""
    out = bytearray()
    for item in fields:
        out += _varint(item.field_number << 3 | item.wire_type)
        if item.wire_type == 0:
            out += _varint(item.data)
        elif item.wire_type == 2:
            out += _varint(len(item.data)) + item.data
        elif item.wire_type == 3:
            out += _unknown(item.data) + _varint(item.field_number << 3 | 4)
        else:
            out += int(item.data).to_bytes(8 if item.wire_type == 1 else 4, "little")
    return bytes(out)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


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


def kind(type_proto: TypeProto) -> str | None:
    """Return which of ``tensor_type``, ``sequence_type`` ... is set."""
    return type_proto.WhichOneof("value")


def describe(info: ValueInfoProto) -> Described:
    """Return element type, shape and kind of a type, in the terms of ``gs.Variable``.

    The element type is a NumPy type, the ONNX number where NumPy has none, or None; so for the elements of a sequence
    or an optional. The shape holds numbers, names and None.
    """
    which = kind(info.type)
    inner = info.type
    while kind(inner) in ("sequence_type", "optional_type"):
        inner = getattr(inner, kind(inner)).elem_type
    if kind(inner) not in ("tensor_type", "sparse_tensor_type"):
        return None, None, which
    tensor = getattr(inner, kind(inner))
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_size(dim) for dim in tensor.shape.dim)
    return numpy_type(tensor.elem_type) or tensor.elem_type or None, shape, which


def _size(dim: Any) -> int | str | None:
    which = dim.WhichOneof("value")
    return getattr(dim, which) if which else None


def put_type(info: ValueInfoProto, tensor: gs.Tensor) -> None:
    """Write element type and shape of ``tensor`` into ``info``, keeping docs, metadata and unchanged dimensions."""
    dtype, shape = tensor.dtype, tensor.shape
    which = getattr(tensor, "type", None) or "tensor_type"
    if kind(info.type) != which and (dtype is not None or shape is not None):
        info.ClearField("type")
    inner = info.type
    if which == "sequence_type":
        inner = inner.sequence_type.elem_type
        which = "tensor_type"
    while kind(inner) in ("sequence_type", "optional_type"):
        inner = getattr(inner, kind(inner)).elem_type
    if which == "optional_type":
        which = kind(inner) or "tensor_type"
    if which not in ("tensor_type", "sparse_tensor_type") or (dtype is None and shape is None):
        return
    target = getattr(inner, which)
    target.SetInParent()
    if dtype is not None:
        target.elem_type = element_type(dtype)
    if shape is None:
        target.ClearField("shape")
        return
    target.shape.SetInParent()
    dims = target.shape.dim
    del dims[len(shape) :]
    for index, size in enumerate(shape):
        dim = dims[index] if index < len(dims) else dims.add()
        if isinstance(size, str):
            wanted: int | str | None = size
        else:
            wanted = None if size is None else int(size)
        if _size(dim) == wanted:
            continue
        dim.ClearField("dim_value")
        dim.ClearField("dim_param")
        if isinstance(wanted, str):
            dim.dim_param = wanted
        elif wanted is not None:
            dim.dim_value = wanted


ATTRIBUTE_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}


def attribute_field(attribute: onnx.AttributeProto) -> str | None:
    """Return the field that holds the value; for the oldest files, which have no ``type``, the one that is set."""
    if attribute.type:
        return ATTRIBUTE_FIELDS.get(attribute.type)
    filled = [name for name in ATTRIBUTE_FIELDS.values() if name in {f.name for f, _ in attribute.ListFields()}]
    return filled[0] if len(filled) == 1 else None


def plain(attribute: onnx.AttributeProto) -> Any:
    """Return the Python value of an attribute that holds neither a graph nor a tensor.

    Text that is not UTF-8 stays bytes; a type or a sparse tensor stays a proto; so does an attribute of unknown kind.
    """
    if attribute.ref_attr_name:
        return gs.Node.AttributeRef(attribute.ref_attr_name, convert_from_onnx_attr_type(attribute.type))
    field = attribute_field(attribute)
    if field is None:
        return attribute
    value = getattr(attribute, field)
    if field == "s":
        return text(value)
    if field == "strings":
        return [text(item) for item in value]
    return list(value) if field.endswith("s") and field != "s" else value
