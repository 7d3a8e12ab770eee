"""Weights: constant values that are read, or computed, only when somebody looks at them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxsqueeze.errors import ModelError, PassError
from onnxsqueeze.ir.dtypes import bits, element_type, numpy_type, pack, typed_field, unpack
from onnxsqueeze.ir.external import DataFolder

__all__ = ["Derived", "Sparse", "Stored", "Weight", "encoded", "peek", "text"]

Array = NDArray[Any]

_DENSE_LIMIT = 2**31


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
        array: Array = self.load()
        array.flags.writeable = False
        return array

    def data(self) -> memoryview:
        """Return the ``nbytes`` bytes that ONNX stores for the values, which must not be strings."""
        return pack(self.peek())

    @property
    def tensor(self) -> TensorProto:
        """The values as a TensorProto without a name; graphsurgeon's own exporter reads this."""
        proto = TensorProto(data_type=element_type(self.dtype), dims=self.shape)
        if self.dtype.kind == "O":
            proto.string_data.extend(encoded(item) for item in self.peek().flat)
        else:
            proto.raw_data = bytes(self.data())
        return proto

    def __str__(self) -> str:
        return f"{type(self).__name__} (shape={self.shape}, dtype={self.dtype})"


class Derived(Weight):
    """Values that ``compute`` returns each time they are needed; at save they are computed, written and dropped."""

    def __init__(self, shape: Iterable[int], dtype: Any, compute: Callable[[], Array]) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        self.nbytes = _size(self.shape, self.dtype)
        self._compute = compute

    def load(self) -> Array:
        array: Array = self._computed().copy()
        return array

    def peek(self) -> Array:
        array: Array = self._computed().view()
        array.flags.writeable = False
        return array

    def _computed(self) -> Array:
        array = np.asarray(self._compute())
        if array.shape != self.shape or array.dtype != self.dtype:
            raise PassError(
                f"a derived weight promised {self.dtype}{list(self.shape)} "
                f"but computes {array.dtype}{list(array.shape)}"
            )
        return array


class Stored(Weight):
    """Values that stand in a model file.

    They are raw bytes or typed fields of ``proto``, or the bytes ``raw`` that were cut out of it, or external data in
    ``folder``. Raises ModelError if the data at hand does not fill the shape.
    """

    def __init__(self, proto: TensorProto, folder: DataFolder | None = None, raw: memoryview | None = None) -> None:
        self.proto = proto
        self.folder = folder
        self.raw = raw
        self.shape = tuple(proto.dims)
        self.external = proto.data_location == TensorProto.EXTERNAL
        """Whether the values stand in a data file beside the model."""
        if any(size < 0 for size in self.shape):
            raise ModelError(f"tensor {proto.name!r} has a negative size in its shape {list(self.shape)}")
        known = numpy_type(proto.data_type)
        self.readable = known is not None and not proto.HasField("segment")
        """Whether the element type and the layout are known; other tensors can only be copied."""
        self.dtype = known or np.dtype("V1")
        if not self.readable:
            self.nbytes = self._length()
        elif self.dtype.kind == "O":
            self.nbytes = sum(map(len, proto.string_data))
        else:
            self.nbytes = _size(self.shape, self.dtype)
        if self.readable and not self.external:
            self._check()

    def load(self) -> Array:
        array: Array = self.peek().copy()
        return array

    def peek(self) -> Array:
        if not self.readable:
            why = "is a segment" if self.proto.HasField("segment") else f"has element type {self.proto.data_type}"
            raise ModelError(f"tensor {self.proto.name!r} {why}, which cannot be read")
        if self.dtype.kind == "O":
            array: Array = np.empty(len(self.proto.string_data), object)
            array[:] = [text(item) for item in self.proto.string_data]
            array = array.reshape(self.shape)
        elif self._is_raw():
            array = unpack(self.data(), self.dtype, self.shape)
        else:
            array = self._typed()
        array.flags.writeable = False
        return array

    def data(self) -> memoryview:
        if self.raw is not None:
            return self.raw
        if self.external:
            return self._external()
        if self.proto.HasField("raw_data"):
            return memoryview(self.proto.raw_data)
        return pack(self.peek())

    def region(self) -> tuple[str, int, int]:
        """Return location, offset and length of the external data, which must be just what the shape needs."""
        name = self.proto.name
        entries = {entry.key: entry.value for entry in self.proto.external_data}
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or self.nbytes)
        except ValueError:
            raise ModelError(f"tensor {name!r} has an external data entry that is not a number") from None
        if offset < 0 or length != self.nbytes:
            raise ModelError(
                f"tensor {name!r} of shape {list(self.shape)} needs {self.nbytes} bytes, "
                f"but its external data entry says {length} at offset {offset}"
            )
        return str(entries.get("location", "")), offset, length

    def find(self) -> Path:
        """Return the data file, once it is sure that all of the external data is there; ModelError if it is not."""
        self._external()
        assert self.folder is not None
        return self.folder.resolve(self.proto.name, self.region()[0])

    def _length(self) -> int:
        """Return how many bytes there are where the shape does not say."""
        if self.external:
            lengths = [entry.value for entry in self.proto.external_data if entry.key == "length"]
            return int(lengths[-1]) if lengths and lengths[-1].isdecimal() else 0
        return len(self.proto.raw_data if self.raw is None else self.raw)

    def _is_raw(self) -> bool:
        return self.raw is not None or self.external or self.proto.HasField("raw_data")

    def _external(self) -> memoryview:
        location, offset, length = self.region()
        if self.folder is None:
            raise ModelError(
                f"tensor {self.proto.name!r} keeps its data in {location!r}, but the model's folder is not known; "
                "load the model from its file"
            )
        return self.folder.read(self.proto.name, location, offset, length)

    def _typed(self) -> Array:
        field, storage, _ = typed_field(self.dtype, math.prod(self.shape))
        items: Array = np.array(getattr(self.proto, field), dtype=storage)
        if bits(self.dtype) in (2, 4):
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
        elif self._is_raw():
            have, need, unit = len(self.proto.raw_data if self.raw is None else self.raw), self.nbytes, "bytes"
        else:
            field, _, need = typed_field(self.dtype, count)
            have, unit = len(getattr(self.proto, field)), "elements"
        if have != need:
            raise ModelError(
                f"tensor {self.proto.name!r} of shape {list(self.shape)} needs {need} {unit}, but {have} are there"
            )


class Sparse(Weight):
    """The values of a sparse initializer; reading them makes them dense."""

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        self.proto = proto
        self.shape = tuple(proto.dims)
        self.dtype = numpy_type(proto.values.data_type) or np.dtype("V1")
        self.nbytes = _size(self.shape, self.dtype)

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


def encoded(item: Any) -> bytes:
    """Return a string as UTF-8 and bytes as they are; the inverse of ``text``."""
    return item if isinstance(item, bytes) else str(item).encode()


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return -(-math.prod(shape) * bits(dtype) // 8)
