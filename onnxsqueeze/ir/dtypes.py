"""Element types: ONNX numbers and NumPy types, and the packed form that elements have in a file."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxsqueeze.errors import ModelError

__all__ = ["bits", "element_type", "numpy_type", "pack", "typed_field", "unpack"]

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
_SUB_BYTE = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2, "float6_e2m3fn": 6, "float6_e3m2fn": 6}
_FIELDS = {  # where not int32_data: field, its NumPy type
    "float32": ("float_data", "float32"),
    "complex64": ("float_data", "float32"),
    "float64": ("double_data", "float64"),
    "complex128": ("double_data", "float64"),
    "int64": ("int64_data", "int64"),
    "uint32": ("uint64_data", "uint64"),
    "uint64": ("uint64_data", "uint64"),
}


def _known() -> dict[int, np.dtype[Any]]:
    """Return the element types that both the installed onnx and the installed ml_dtypes have."""
    known = {}
    for key, code in TensorProto.DataType.items():
        try:
            known[int(code)] = np.dtype(getattr(ml_dtypes, _NAMES[key], _NAMES[key]))
        except (KeyError, TypeError):
            continue
    return known


_NUMPY = _known()
_ONNX = {dtype.name: code for code, dtype in _NUMPY.items()}
_BITS = {dtype: _SUB_BYTE.get(dtype.name, 8 * dtype.itemsize) for dtype in _NUMPY.values()}


def numpy_type(element: int) -> np.dtype[Any] | None:
    """Return the NumPy type of an ONNX element type; None if it is undefined or newer than the installed packages."""
    return _NUMPY.get(element)


def element_type(dtype: Any) -> int:
    """Return the ONNX element type of a NumPy type; a number is one already. ModelError if ONNX has none."""
    if isinstance(dtype, int):
        return int(dtype)
    dtype = np.dtype(dtype)
    code = int(TensorProto.STRING) if dtype.kind in "UST" else _ONNX.get(dtype.name)
    if code is None:
        raise ModelError(f"ONNX has no element type for the NumPy type {dtype}")
    return code


def bits(dtype: np.dtype[Any]) -> int:
    """Return the number of bits that one element takes in a file."""
    return _BITS.get(dtype, 8 * dtype.itemsize)


def typed_field(dtype: np.dtype[Any], count: int) -> tuple[str, np.dtype[Any], int]:
    """Return the typed field of a TensorProto for ``count`` elements, its NumPy type and its length."""
    field, storage = _FIELDS.get(dtype.name, ("int32_data", "int32"))
    if dtype.kind == "c":
        count *= 2
    elif bits(dtype) in (2, 4):
        count = -(-count * bits(dtype) // 8)
    return field, np.dtype(storage), count


def pack(array: Array) -> memoryview:
    """Return the bytes of ``array`` as ONNX stores them: C order, little endian, sub-byte elements packed."""
    array = np.ascontiguousarray(array).reshape(-1)
    width = _SUB_BYTE.get(array.dtype.name)
    if width is None:
        if array.dtype.byteorder == ">" or (sys.byteorder == "big" and array.dtype.byteorder == "="):
            array = array.byteswap()
        return array.view(np.uint8).data
    codes: Array = array.view(np.uint8)
    if width == 6:
        stream = np.unpackbits(codes[:, None], axis=1, count=6, bitorder="little")
        codes = np.packbits(stream.reshape(-1), bitorder="little")
        return codes.data
    per = 8 // width
    codes = np.concatenate([codes, np.zeros(-len(codes) % per, np.uint8)]) & np.uint8((1 << width) - 1)
    packed: Array = codes[0::per].copy()
    for slot in range(1, per):
        packed |= codes[slot::per] << np.uint8(width * slot)
    data: memoryview = packed.data
    return data


def unpack(data: bytes | memoryview, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Return the array behind the bytes ``data``: a view of them, or a new array where elements are packed."""
    width = _SUB_BYTE.get(dtype.name)
    if width is None:
        array: Array = np.frombuffer(data, dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype)
        return array.reshape(shape)
    packed = np.frombuffer(data, np.uint8)
    count = math.prod(shape)
    if width == 6:
        stream = np.unpackbits(packed, count=6 * count, bitorder="little").reshape(count, 6)
        codes: Array = np.packbits(stream, axis=1, bitorder="little").reshape(-1)
    else:
        per = 8 // width
        codes = np.empty(len(packed) * per, np.uint8)
        for slot in range(per):
            codes[slot::per] = (packed >> np.uint8(width * slot)) & np.uint8((1 << width) - 1)
    return codes[:count].view(dtype).reshape(shape)
