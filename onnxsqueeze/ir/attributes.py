"""Attributes of nodes: the Python value behind an AttributeProto, and which kind a Python value needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto
from onnx_graphsurgeon.util.misc import convert_from_onnx_attr_type

from onnxsqueeze.errors import ModelError
from onnxsqueeze.ir.weights import text

__all__ = ["FIELDS", "LongList", "field_of", "kind_of", "plain", "says"]

FIELDS: dict[int, str] = {
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
_LIST_OF: dict[int, int] = {
    AttributeProto.FLOAT: AttributeProto.FLOATS,
    AttributeProto.INT: AttributeProto.INTS,
    AttributeProto.STRING: AttributeProto.STRINGS,
    AttributeProto.TENSOR: AttributeProto.TENSORS,
    AttributeProto.GRAPH: AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSOR: AttributeProto.SPARSE_TENSORS,
    AttributeProto.TYPE_PROTO: AttributeProto.TYPE_PROTOS,
}

_LONG = 4096
"""Numbers or texts from which on the list of an attribute is not copied."""


class LongList(Sequence[Any]):
    """A long list of numbers or texts, read where it stands in the model: it cannot be changed and is never copied.

    Tree ensembles hold millions of them. To change one, give the node ``list(...)`` of it.
    """

    __slots__ = ("proto", "values")

    def __init__(self, proto: AttributeProto, field: str) -> None:
        self.proto = proto
        """The attribute that holds it; for reading only."""
        self.values = getattr(proto, field)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        found = self.values[index]
        return [_item(item) for item in found] if isinstance(index, slice) else _item(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongList) and (self.proto is other.proto or self.values == other.values)

    def __repr__(self) -> str:
        return f"<{len(self)} values of the attribute {self.proto.name!r}>"


def _item(value: Any) -> Any:
    return text(value) if isinstance(value, bytes) else value


def field_of(attribute: AttributeProto) -> str | None:
    """Return the field with the value: that of the type or, in the oldest files, which have no type, the one set.

    None if the attribute only refers to one of the function around it, or is of a kind from the future.
    """
    if attribute.ref_attr_name:
        return None
    if attribute.type:
        field = FIELDS.get(attribute.type)
        return None if field == "g" and not attribute.HasField("g") else field
    found = [descriptor.name for descriptor, _ in attribute.ListFields() if descriptor.name in FIELDS.values()]
    return found[0] if len(found) == 1 else None


def plain(attribute: AttributeProto) -> Any:
    """Return the Python value of an attribute that holds neither graphs nor tensors.

    A long list stays where it is. Text that is not UTF-8 stays bytes; a type or a sparse tensor stays a proto; so does
    an attribute of unknown kind.
    """
    if attribute.ref_attr_name:
        return gs.Node.AttributeRef(attribute.ref_attr_name, convert_from_onnx_attr_type(attribute.type))
    field = field_of(attribute)
    if field is None:
        return attribute
    value = getattr(attribute, field)
    if field in ("floats", "ints", "strings") and len(value) > _LONG:
        return LongList(attribute, field)
    if field == "s":
        return text(value)
    if field == "strings":
        return [text(item) for item in value]
    return value if field in ("f", "i", "tp", "sparse_tensor") else list(value)


def says(attribute: AttributeProto, value: Any) -> bool:
    """Whether ``plain(attribute)`` is just ``value``; NaN equals itself, 0.0 and -0.0 differ, 1 and 1.0 too."""
    if isinstance(value, LongList):
        return value.proto is attribute
    decoded = plain(attribute)
    if type(decoded) is not type(value):
        return False
    return repr(decoded) == repr(value) if isinstance(value, (float, list)) else bool(decoded == value)


def kind_of(name: str, value: Any, before: int = AttributeProto.UNDEFINED) -> int:
    """Return the attribute type for a Python value; the type that it had ``before`` where that can hold it.

    Raises ModelError if ONNX has no type for the value.
    """
    if isinstance(value, (list, tuple)):
        return _list_kind(name, list(value), before)
    if isinstance(value, (str, bytes)):
        return AttributeProto.STRING
    if isinstance(value, (int, np.integer, np.bool_)):
        return AttributeProto.FLOAT if before == AttributeProto.FLOAT else AttributeProto.INT
    if isinstance(value, (float, np.floating)):
        return AttributeProto.FLOAT
    if isinstance(value, np.ndarray) and before in (AttributeProto.INTS, AttributeProto.FLOATS):
        return before
    if isinstance(value, (gs.Constant, np.ndarray)):
        return AttributeProto.TENSOR
    if isinstance(value, gs.Graph):
        return AttributeProto.GRAPH
    if isinstance(value, onnx.SparseTensorProto):
        return AttributeProto.SPARSE_TENSOR
    if isinstance(value, onnx.TypeProto):
        return AttributeProto.TYPE_PROTO
    raise ModelError(f"attribute {name!r} has a value of type {type(value).__name__}, which ONNX cannot hold")


def _list_kind(name: str, values: list[Any], before: int) -> int:
    if not values:
        return before if before in _LIST_OF.values() else AttributeProto.INTS
    kinds = {kind_of(name, item) for item in values}
    if AttributeProto.FLOAT in kinds or before == AttributeProto.FLOATS:
        kinds -= {AttributeProto.INT}
        kinds = kinds or {AttributeProto.FLOAT}
    if len(kinds) != 1 or not kinds <= _LIST_OF.keys():
        raise ModelError(f"attribute {name!r} has a list of mixed values, which ONNX cannot hold")
    return _LIST_OF[kinds.pop()]
