"""Weights: constant values that are read, or computed, only when somebody looks at them."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxsqueeze.errors import ModelError, PassError
from onnxsqueeze.external import DataFolder

__all__ = ["Derived", "Sparse", "Stored", "Weight", "bits", "element_type", "numpy_type", "pack", "peek"]

Array = NDArray[Any]

_NAMES = {
    "FLOAT": "float32",
    "UINT8": "uint8",
    "INT8": "int8",
    "UINT16": "uint16",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "STRING": "object",
    "BOOL": "bool",
    "FLOAT16": "float16",
    "DOUBLE": "float64",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "COMPLEX64": "complex64",
    "COMPLEX128": "complex128",
    "BFLOAT16": "bfloat16",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "UINT4": "uint4",
    "INT4": "int4",
    "UINT2": "uint2",
    "INT2": "int2",
    "FLOAT4E2M1": "float4_e2m1fn",
    "FLOAT6E2M3": "float6_e2m3fn",
    "FLOAT6E3M2": "float6_e3m2fn",
}


def _dtype(name: str) -> np.dtype[Any] | None:
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        return None  # an older ml_dtypes without this type


_NUMPY = {
    TensorProto.DataType.Value(key): dtype
    for key, name in _NAMES.items()
    if key in TensorProto.DataType.keys() and (dtype := _dtype(name)) is not None
}
_ONNX = {dtype: code for code, dtype in _NUMPY.items()}
_DENSE_LIMIT = 2**31
_SUB_BYTE = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2, "float6_e2m3fn": 6, "float6_e3m2fn": 6}
_FIELDS = {
    np.dtype("float32"): ("float_data", np.dtype("float32")),
    np.dtype("complex64"): ("float_data", np.dtype("float32")),
    np.dtype("float64"): ("double_data", np.dtype("float64")),
    np.dtype("complex128"): ("double_data", np.dtype("float64")),
    np.dtype("int64"): ("int64_data", np.dtype("int64")),
    np.dtype("uint32"): ("uint64_data", np.dtype("uint64")),
    np.dtype("uint64"): ("uint64_data", np.dtype("uint64")),
}


def numpy_type(element: int) -> np.dtype[Any] | None:
    """Return the NumPy type of an ONNX element type; None if there is none (undefined, or newer than this code)."""
    return _NUMPY.get(element)


def element_type(dtype: Any) -> int:
    """Return the ONNX element type of a NumPy type, or of an ONNX element type already."""
    if isinstance(dtype, int):
        return int(dtype)
    dtype = np.dtype(dtype)
    if dtype.kind in "USOT":
        return int(TensorProto.STRING)
    code = _ONNX.get(dtype.newbyteorder("=") if dtype.kind in "iufc" else dtype)
    if code is None:
        raise ModelError(f"ONNX has no element type for the NumPy type {dtype}")
    return code


def bits(dtype: np.dtype[Any]) -> int:
    """Return the number of bits that one element takes in a file."""
    return _SUB_BYTE.get(dtype.name, 8 * dtype.itemsize)


def pack(array: Array) -> memoryview:
    """Return the bytes of ``array`` as ONNX stores them: C order, little endian, sub-byte elements packed."""
    array = np.ascontiguousarray(array)
    width = _SUB_BYTE.get(array.dtype.name)
    if width is None:
        if array.dtype.byteorder == ">" or (sys.byteorder == "big" and array.dtype.byteorder == "="):
            array = array.byteswap()
        return memoryview(array.reshape(-1).view(np.uint8))
    codes = array.reshape(-1).view(np.uint8)
    if width == 6:
        stream = np.unpackbits(codes[:, None], axis=1, count=6, bitorder="little")
        return memoryview(np.packbits(stream.reshape(-1), bitorder="little"))
    per = 8 // width
    codes = np.concatenate([codes, np.zeros(-len(codes) % per, np.uint8)]) & ((1 << width) - 1)
    packed = codes[0::per].copy()
    for slot in range(1, per):
        packed |= codes[slot::per] << (width * slot)
    return memoryview(packed)


def unpack(data: Any, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Return the array behind the bytes ``data``: a read-only view of them, a new array for sub-byte elements."""
    width = _SUB_BYTE.get(dtype.name)
    if width is None:
        array: Array = np.frombuffer(data, dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype)
        return array.reshape(shape)
    packed = np.frombuffer(data, np.uint8)
    count = math.prod(shape)
    if width == 6:
        stream = np.unpackbits(packed, count=6 * count, bitorder="little").reshape(count, 6)
        codes = np.packbits(stream, axis=1, bitorder="little").reshape(-1)
    else:
        per = 8 // width
        codes = np.empty(len(packed) * per, np.uint8)
        for slot in range(per):
            codes[slot::per] = (packed >> (width * slot)) & ((1 << width) - 1)
    return codes[:count].view(dtype).reshape(shape)


class Weight(LazyValues):  # type: ignore[misc]
    """The values of a ``gs.Constant`` that need not be in memory; ``Constant.values`` loads and pins them."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    """Size in a model file, so that two int4 elements count as one byte."""

    @abstractmethod
    def load(self) -> Array:
        """Return the values in a new, writable array; nothing is cached."""

    def peek(self) -> Array:
        """Return the values, read-only, as a view of the file where possible."""
        array = self.load()
        array.flags.writeable = False
        return array

    def data(self) -> memoryview:
        """Return the ``nbytes`` bytes that ONNX stores for the values."""
        return pack(self.load())

    def __str__(self) -> str:
        return f"{type(self).__name__} (shape={self.shape}, dtype={self.dtype})"


class Derived(Weight):
    """Values that ``compute`` returns each time they are needed; at save they are computed, written and dropped."""

    def __init__(self, shape: Iterable[int], dtype: Any, compute: Callable[[], Array]) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        self.nbytes = (math.prod(self.shape) * bits(self.dtype) + 7) // 8
        self._compute = compute

    def load(self) -> Array:
        array = np.asarray(self._compute())
        if array.shape != self.shape or array.dtype != self.dtype:
            raise PassError(
                f"a derived weight promised {self.dtype}{list(self.shape)} "
                f"but computes {array.dtype}{list(array.shape)}"
            )
        return array if array.flags.writeable else array.copy()


class Stored(Weight):
    """Values that stand in a model file: raw bytes, typed fields, or external data in ``folder``."""

    def __init__(self, proto: TensorProto, folder: DataFolder | None = None, raw: memoryview | None = None) -> None:
        self.proto = proto
        self.folder = folder
        self.raw = raw
        self.shape = tuple(proto.dims)
        self.dtype = numpy_type(proto.data_type) or np.dtype("V1")
        if any(size < 0 for size in self.shape):
            raise ModelError(f"tensor {proto.name!r} has a negative size in its shape {list(self.shape)}")
        self.nbytes = (math.prod(self.shape) * bits(self.dtype) + 7) // 8
        if self.dtype.kind == "O":
            self.nbytes = sum(map(len, proto.string_data))
        if not self.external and not proto.HasField("segment") and proto.data_type in _NUMPY:
            self._check()

    @property
    def external(self) -> bool:
        """Whether the values stand in a data file beside the model."""
        return bool(self.proto.data_location == TensorProto.EXTERNAL)

    def data(self) -> memoryview:
        if self.dtype.kind == "O":
            raise ModelError(f"tensor {self.proto.name!r} holds strings, which have no raw form")
        if self.raw is not None:
            return self.raw
        if self.external:
            return self._external()
        if self.proto.HasField("raw_data"):
            return memoryview(self.proto.raw_data)
        return pack(self.peek())

    def peek(self) -> Array:
        if self.proto.HasField("segment"):
            raise ModelError(f"tensor {self.proto.name!r} is a segment of a bigger one, which nobody can read")
        if self.proto.data_type not in _NUMPY:
            raise ModelError(f"tensor {self.proto.name!r} has the unknown element type {self.proto.data_type}")
        if self.dtype.kind == "O":
            strings = np.empty(len(self.proto.string_data), object)
            strings[:] = [text(item) for item in self.proto.string_data]
            array = strings.reshape(self.shape)
        elif self.raw is not None or self.external or self.proto.HasField("raw_data"):
            array = unpack(self.data(), self.dtype, self.shape)
        else:
            array = self._typed()
        array.flags.writeable = False
        return array

    def load(self) -> Array:
        return self.peek().copy()

    def _typed(self) -> Array:
        field, storage = _FIELDS.get(self.dtype, ("int32_data", np.dtype("int32")))
        items: Array = np.array(getattr(self.proto, field), storage)
        if self.dtype.name in _SUB_BYTE and bits(self.dtype) != 6:
            return unpack(items.astype(np.uint8).tobytes(), self.dtype, self.shape)
        if field == "int32_data":
            items = items.astype(f"u{self.dtype.itemsize}").view(self.dtype)
        elif self.dtype.kind == "c":
            items = items.view(self.dtype)
        return items.astype(self.dtype, copy=False).reshape(self.shape)

    def _check(self) -> None:
        """Refuse a shape that the data does not fill, before anybody allocates it."""
        count = math.prod(self.shape)
        if self.dtype.kind == "O":
            have, need, unit = len(self.proto.string_data), count, "strings"
        elif self.raw is not None or self.proto.HasField("raw_data"):
            have, need, unit = len(self.proto.raw_data if self.raw is None else self.raw), self.nbytes, "bytes"
        else:
            field, storage = _FIELDS.get(self.dtype, ("int32_data", np.dtype("int32")))
            have, unit = len(getattr(self.proto, field)), "elements"
            need = count * 2 if self.dtype.kind == "c" else count
            if self.dtype.name in _SUB_BYTE and bits(self.dtype) != 6:
                need = self.nbytes
        if have != need:
            raise ModelError(
                f"tensor {self.proto.name!r} of shape {list(self.shape)} needs {need} {unit}, but {have} are there"
            )

    def _external(self) -> memoryview:
        name = self.proto.name
        entries = {entry.key: entry.value for entry in self.proto.external_data}
        location = entries.get("location", "")
        if self.folder is None:
            raise ModelError(f"tensor {name!r} keeps its data in {location!r}, but the model's folder is not known")
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or self.nbytes)
        except ValueError:
            raise ModelError(f"tensor {name!r} has an external data entry that is not a number") from None
        if offset < 0 or length != self.nbytes:
            raise ModelError(
                f"tensor {name!r} of shape {list(self.shape)} needs {self.nbytes} bytes, "
                f"but its external data entry says {length} at offset {offset}"
            )
        return self.folder.read(name, location, offset, length)


class Sparse(Weight):
    """The values of a sparse initializer; reading them makes them dense."""

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        self.proto = proto
        self.shape = tuple(proto.dims)
        self.dtype = numpy_type(proto.values.data_type) or np.dtype("V1")
        self.nbytes = (math.prod(self.shape) * bits(self.dtype) + 7) // 8

    def load(self) -> Array:
        name = self.proto.values.name
        if self.nbytes > _DENSE_LIMIT:
            raise ModelError(f"sparse tensor {name!r} of shape {list(self.shape)} is too big to be made dense")
        values, indices = Stored(self.proto.values).peek(), Stored(self.proto.indices).peek()
        dense = np.zeros(self.shape, self.dtype)
        try:
            if indices.ndim == 1:
                dense.reshape(-1)[indices] = values
            else:
                dense[tuple(indices.T)] = values
        except (IndexError, ValueError):
            raise ModelError(f"sparse tensor {name!r} has indices outside its shape {list(self.shape)}") from None
        return dense


def peek(constant: gs.Constant) -> Array:
    """Return the values of ``constant`` without pinning them: read-only, a view of the file where possible."""
    values = constant._values
    if isinstance(values, Weight):
        return values.peek()
    array: Array = (values.load() if isinstance(values, LazyValues) else values).view()
    array.flags.writeable = False
    return array


def text(item: bytes) -> str | bytes:
    """Return UTF-8 as a string and other bytes as they are."""
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item
