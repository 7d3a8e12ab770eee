"""Where the bytes of weights go when a graph is encoded: into the model, a file, or nowhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxsqueeze.ir.attributes import LongList, field_of
from onnxsqueeze.ir.dtypes import element_type, numpy_type, pack
from onnxsqueeze.ir.protos import put, shell, varint
from onnxsqueeze.ir.weights import Derived, Stored, Weight, encoded
from onnxsqueeze.ir.wire import CUT

__all__ = ["Inline", "Skeleton", "Spliced", "Streamed", "put_tensor", "unchanged"]

_PAYLOAD = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "external_data",
)
_PAGE = 4096
_SHAPE = 1 << 20  # no shape has more bytes


class Inline:
    """Puts new weights into the model and leaves external data where it is."""

    def keeps(self, weight: Stored) -> bool:
        """Whether the source proto of an unchanged weight can be copied as it is."""
        return weight.raw is None

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        """Give ``tensor``, which is complete but for its data, the data of ``weight``.

        ``index`` counts the initializers of the main graph; it is None for other tensors.
        """
        tensor.raw_data = bytes(weight.data())

    def cuts(self, node: gs.Node) -> bool:
        """Whether long lists among the attributes of a node are left out."""
        return False

    def put_list(self, out: AttributeProto, value: LongList) -> None:
        """Give an attribute, which has its name, a long list."""
        name = out.name
        out.CopyFrom(value.proto)
        put(out, "name", name)


class Skeleton(Inline):
    """Leaves out the weights of more than 1 KiB but those that shape inference may read: shapes and indices.

    Of the long lists of ``ai.onnx.ml``, whose lengths no shape hangs on, the first value stays unless ``whole_lists``.
    """

    def __init__(self, whole_lists: bool = False) -> None:
        self.whole_lists = whole_lists
        self.left_out = 0
        """Bytes of the lists that were left out."""

    def cuts(self, node: gs.Node) -> bool:
        found = node.domain == "ai.onnx.ml" and any(isinstance(value, LongList) for value in node.attrs.values())
        return found and not self.whole_lists

    def put_list(self, out: AttributeProto, value: LongList) -> None:
        if self.whole_lists:
            super().put_list(out, value)
            return
        out.type = value.proto.type
        getattr(out, str(field_of(value.proto))).append(value.values[0])
        whole, left = value.proto.ByteSize(), out.ByteSize()
        self.left_out += whole + len(varint(whole)) - left - len(varint(left))

    def keeps(self, weight: Stored) -> bool:
        return weight.raw is None and not weight.external and not self._drops(weight)

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        if self._drops(weight):
            _refer(tensor, "weights-left-out", 0, weight.nbytes)
        else:
            super().place(tensor, weight, index)

    @staticmethod
    def _drops(weight: Weight) -> bool:
        shape = weight.dtype.name in ("int32", "int64") and weight.nbytes <= _SHAPE
        return weight.nbytes > CUT and not shape and weight.dtype.kind != "O"


class Spliced(Inline):
    """Leaves the raw data of big initializers empty, to be spliced in when the model is written."""

    def __init__(self) -> None:
        self.payloads: dict[int, Weight] = {}

    def keeps(self, weight: Stored) -> bool:
        big = weight.nbytes >= CUT and weight.proto.HasField("raw_data")
        return not (weight.external or big)

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        if index is None or weight.nbytes < CUT:
            super().place(tensor, weight, index)
        else:
            tensor.raw_data = b""
            self.payloads[index] = weight


class Streamed(Inline):
    """Lays the weights from 1 KiB up out one after the other in the data file ``location``; equal ones only once."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.layout: dict[int, Weight] = {}
        """The weights by their offset."""
        self._end = 0
        self._seen: dict[Any, int] = {}

    def keeps(self, weight: Stored) -> bool:
        return weight.raw is None and not weight.external and self._stays(weight)

    def place(self, tensor: TensorProto, weight: Weight, index: int | None) -> None:
        if self._stays(weight):
            super().place(tensor, weight, index)
            return
        key = (id(weight.folder), *weight.region()) if isinstance(weight, Stored) and weight.external else id(weight)
        if key not in self._seen:
            step = _PAGE if weight.nbytes >= _PAGE else 64  # what is mapped starts on a page
            offset = math.ceil(self._end / step) * step
            self._seen[key] = offset
            self.layout[offset] = weight
            self._end = offset + weight.nbytes
        _refer(tensor, self.location, self._seen[key], weight.nbytes)

    @staticmethod
    def _stays(weight: Weight) -> bool:
        unknown = isinstance(weight, Stored) and not (weight.readable or weight.external)
        return weight.nbytes < CUT or unknown


def put_tensor(out: TensorProto, constant: gs.Constant, placement: Inline, index: int | None = None) -> None:
    """Write ``constant`` to the empty ``out``: its source where that still says the same, else what is new of it."""
    origin = getattr(constant, "origin", None)
    source = unchanged(constant)
    if isinstance(source, Stored) and (source.dtype.kind == "O" or placement.keeps(source)):
        out.CopyFrom(source.proto)
        put(out, "name", constant.name)
        return
    if isinstance(origin, Stored):
        raw = source is not None and not origin.external and origin.proto.HasField("raw_data")
        stale = ["raw_data"] if raw else [*_PAYLOAD, *(["data_location"] if origin.external else [])]
        stale += [] if source is not None else ["segment"]
        out.CopyFrom(shell(origin.proto, *stale))
    put(out, "name", constant.name)
    weight = source or _weight(constant)
    if not isinstance(source, Stored):
        if tuple(out.dims) != weight.shape:
            del out.dims[:]
            out.dims.extend(weight.shape)
        put(out, "data_type", element_type(weight.dtype))
    if weight.dtype.kind in "OUST":
        out.string_data.extend(encoded(item) for item in np.ravel(weight.peek()))
    else:
        placement.place(out, weight, index)


def unchanged(constant: gs.Constant) -> Weight | None:
    """Return the weight that ``constant`` was decoded with if it still holds just these values, pinned or not."""
    origin: Weight | None = getattr(constant, "origin", None)
    values: object = constant._values
    if not isinstance(origin, Weight) or getattr(constant, "_export_dtype", None) is not None:
        return None
    if values is origin:
        return origin
    if not isinstance(values, np.ndarray) or values.shape != origin.shape or values.dtype != origin.dtype:
        return None
    before = origin.peek()
    if values.dtype.kind == "O":
        return origin if np.array_equal(before, values) else None
    same = np.array_equal(np.frombuffer(pack(before), np.uint8), np.frombuffer(pack(values), np.uint8))
    return origin if same else None


def _weight(constant: gs.Constant) -> Weight:
    """Return the values of ``constant`` as a weight, in its export type if it has one."""
    values, wanted = constant._values, getattr(constant, "_export_dtype", None)
    if isinstance(values, Weight) and wanted is None:
        return values
    if type(values) is LazyValues and wanted is None:  # of graphsurgeon's own importer
        return Stored(values.tensor)
    array = values.load() if isinstance(values, LazyValues) else np.asarray(values)
    if wanted is not None:
        array = array.astype(numpy_type(wanted) if isinstance(wanted, int) else wanted)
    return Derived(array.shape, array.dtype, lambda: array)


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
