"""Where the numbers of tensors stand in a model file and its data files, wherever in the model the tensors are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import TensorProto

from onnxsqueeze.container.encoding import Piece
from onnxsqueeze.ir import wire
from onnxsqueeze.ir.dtypes import bits, numpy_type

__all__ = ["Packed", "Place", "cut", "places"]

LEAST = 64
"""Bytes of a tensor that is worth a piece of its own."""
DEPTH = 64
"""How deep graphs are looked into."""

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Messages of ONNX by the number of the field that holds them; other fields hold no tensors."""
_DATA = {4: TensorProto.FLOAT, 9: TensorProto.UNDEFINED, 10: TensorProto.DOUBLE}
"""Fields of a TensorProto with numbers of a fixed width: float_data, raw_data, double_data."""


@dataclass(frozen=True)
class Place:
    """A tensor without its numbers, and where those stand: in the model, or (``location``) in a data file."""

    proto: TensorProto
    start: int
    end: int
    element: int
    location: str | None = None


@dataclass
class Packed:
    """A tensor of a packed model: its bytes, about those that it takes now, and the entropy of an element in bits.

    ``entropy`` is that of the values' frequencies alone, −Σ p·log₂ p, and None where elements have over 8 bits.
    """

    name: str
    dtype: str
    elements: int
    size: int
    entropy: float | None
    coded: float = 0.0


def places(data: memoryview) -> Iterator[Place]:
    """Yield the tensors of the model file ``data`` of which a place is known, in the order of the file."""
    try:
        yield from _inside(data, "model", 0, len(data), 0)
    except wire.Malformed:
        return


def cut(data: memoryview, found: list[Place], tensors: list[Packed]) -> list[Piece]:
    """Return a file as pieces, those of tensors and what is between them.

    What overlaps with a tensor before it stays what is between. ``tensors`` gets the tensors that pieces speak of.
    """
    pieces = []
    at, size = 0, len(data)
    for place in sorted(found, key=lambda place: (place.start, -place.end)):
        length = place.end - place.start
        if place.start < at or place.end > size or length < LEAST:
            continue
        dtype = numpy_type(place.element)
        width = 1 if dtype is None or bits(dtype) < 8 else dtype.itemsize
        if width not in (1, 2, 4, 8, 16) or length % width:
            continue
        name = "?" if dtype is None else dtype.name
        shape = tuple(place.proto.dims)
        wide = 8 if dtype is None else bits(dtype)
        entropy = _entropy(data[place.start : place.end], wide)
        tensors.append(Packed(place.proto.name, name, 8 * length // wide, length, entropy))
        if place.start > at:
            pieces.append(Piece(place.start - at))
        floating = name.startswith(("float", "bfloat", "complex"))
        columns = length // width // shape[0] if len(shape) > 1 and shape[0] and length % (width * shape[0]) == 0 else 1
        width, columns = (width // 2, 2 * columns) if name.startswith("complex") else (width, columns)
        packed = dtype is not None and (bits(dtype) < 8 or name == "uint8")
        pieces.append(Piece(length, width, columns, floating, packed, len(tensors) - 1))
        at = place.end
    return [*pieces, Piece(size - at)] if at < size else pieces


def _inside(data: memoryview, message: str, start: int, end: int, depth: int) -> Iterator[Place]:
    kinds = _INSIDE[message]
    for number, _, content, stop in wire.fields(data, start, end):
        kind = kinds.get(number)
        if kind == "tensor":
            yield from _tensor(data, content, stop)
        elif kind is not None and depth < DEPTH:
            yield from _inside(data, kind, content, stop, depth + 1)


def _tensor(data: memoryview, start: int, end: int) -> Iterator[Place]:
    rest, held = [], []
    for number, tag, content, stop in wire.fields(data, start, end):
        if number in _DATA:
            held.append((number, content, stop))
        else:
            rest.append(data[tag:stop])
    try:
        proto = TensorProto.FromString(b"".join(rest))
    except DecodeError:
        return
    if proto.data_location == TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in proto.external_data}
        offset, dtype = _number(entries, "offset"), numpy_type(proto.data_type)
        length = _number(entries, "length") or (
            -(-math.prod(proto.dims) * bits(dtype) // 8) if dtype is not None else 0
        )
        yield Place(proto, offset, offset + max(length, 0), proto.data_type, entries.get("location", ""))
    for number, content, stop in held[:1] if len(held) == 1 else ():
        yield Place(proto, content, stop, _DATA[number] or proto.data_type)


def _entropy(data: memoryview, wide: int) -> float | None:
    """Return the bits that an element of up to 8 bits has by its values' frequencies; None for wider ones."""
    if wide not in (2, 4, 8):
        return None
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    values, whole = np.arange(256), counts
    counts = np.zeros(1 << wide, np.int64)
    for shift in range(0, 8, wide):
        np.add.at(counts, values >> shift & (1 << wide) - 1, whole)
    share = counts[counts > 0] / counts.sum()
    return abs(float(np.sum(share * np.log2(share))))


def _number(entries: dict[str, str], key: str) -> int:
    text = entries.get(key) or "0"
    return int(text) if text.isdecimal() else 0
