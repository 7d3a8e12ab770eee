"""One block of a container, decoded: planes from four pools, and the parts that they make."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from onnxsqueeze.container import huffman, planes, rans, zstd
from onnxsqueeze.container.contexts import spread
from onnxsqueeze.container.format import DEFLATED, ENTROPY, RAW, ZSTD, Block, Numbers
from onnxsqueeze.container.tables import Symbols
from onnxsqueeze.errors import ModelError

__all__ = ["CODERS", "decode"]

CODERS = (rans, huffman)
"""The entropy coders by their number in a block."""
MOST_TABLES = 256
WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True)
class _Plane:
    method: int
    size: int
    tables: Symbols
    rows: Symbols
    columns: Symbols
    ways: int

    def contexts(self) -> Symbols:
        """Return the table of every number."""
        if len(self.tables) == 1:
            return np.full(self.size, self.tables[0], np.uint8)
        return self.tables.take(spread(self.rows, self.columns, self.ways))


@dataclass(frozen=True)
class _Part:
    size: int
    kind: int
    width: int
    values: Symbols | None
    planes: list[_Plane]


def decode(block: Block, target: memoryview | None = None) -> memoryview:
    """Return the raw bytes of a block, in ``target`` if that is given, which has room for just these.

    Raises ModelError if any of it is damaged; memory is a few times its size.
    """
    numbers = Numbers(block.description())
    coder, lanes = numbers.next(len(CODERS) - 1), numbers.next(1 << 20)
    count, deflated, squeezed = numbers.next(MOST_TABLES), numbers.next(len(block.body)), numbers.next(len(block.body))
    codes = np.frombuffer(numbers.take(256 * count), np.uint8).reshape(count, 256)
    codes = np.add.accumulate(codes, axis=1, dtype=np.uint8)
    parts = []
    left = block.size
    while left:
        parts.append(_part(numbers, left, count))
        left -= parts[-1].size
    if numbers.at != len(numbers.data):
        raise ModelError("the description of a block does not end where it should")
    every = [plane for part in parts for plane in part.planes]
    sizes = [sum(plane.size for plane in every if plane.method == method) for method in range(4)]
    raw, rest = sizes[RAW], block.body
    if raw + deflated + squeezed + 4 * lanes > len(rest):
        raise ModelError("a block of the container is too short")
    pools = [np.frombuffer(rest[:raw], np.uint8), np.empty(0, np.uint8)]
    pools.append(_inflated(rest[raw : raw + deflated], sizes[DEFLATED]))
    pools.append(zstd.decompress(rest[raw + deflated : raw + deflated + squeezed], sizes[ZSTD]))
    coded = rest[raw + deflated + squeezed :]
    if sizes[ENTROPY]:
        if not (count and 0 < lanes <= sizes[ENTROPY] and len(coded) % 2 == 0):
            raise ModelError("a block of the container is damaged")
        some = [plane.contexts() for plane in every if plane.method == ENTROPY] if count > 1 else []
        contexts = np.concatenate(some) if some else None
        pools[ENTROPY] = CODERS[coder].decode(coded, contexts, codes, lanes, sizes[ENTROPY])
    elif len(coded):
        raise ModelError("a block of the container is longer than it should be")
    out = memoryview(bytearray(block.size)) if target is None else target
    at, taken = 0, [0] * 4
    for part in parts:
        found = []
        for plane in part.planes:
            found.append(pools[plane.method][taken[plane.method] : taken[plane.method] + plane.size])
            taken[plane.method] += plane.size
        planes.join(found, part.kind, part.width, part.values, out[at : at + part.size])
        at += part.size
    if zlib.crc32(out) != block.crc:
        raise ModelError("a block of the container is damaged: its checksum is wrong")
    return out


def _part(numbers: Numbers, left: int, tables: int) -> _Part:
    size, kind, width = numbers.next(left), numbers.next(planes.VALUES), numbers.next(8)
    if not size or width not in WIDTHS or size % width or (kind <= planes.NIBBLES and width != 1):
        raise ModelError("a part of a block is damaged")
    values = None
    if kind == planes.VALUES:
        values = np.frombuffer(numbers.take(width * (numbers.next(planes.FEW - 1) + 1)), np.uint8)
    many = 2 * size if kind == planes.NIBBLES else size // width
    return _Part(size, kind, width, values, [_plane(numbers, many, tables) for _ in range(planes.count(kind, width))])


def _plane(numbers: Numbers, size: int, tables: int) -> _Plane:
    method = numbers.next(ZSTD)
    nothing = np.empty(0, np.uint8)
    if method != ENTROPY:
        return _Plane(method, size, nothing, nothing, nothing, 1)
    row_ways, column_ways = numbers.next(MOST_TABLES), numbers.next(MOST_TABLES)
    if not 0 < row_ways * column_ways <= MOST_TABLES:
        raise ModelError("a plane of a block is damaged")
    named = np.frombuffer(numbers.take(row_ways * column_ways), np.uint8)
    rows = columns = np.zeros(1, np.uint8)
    if row_ways * column_ways > 1:
        high = numbers.next(size)
        if not high or size % high:
            raise ModelError("a plane of a block is damaged")
        rows, columns = np.zeros(high, np.uint8), np.zeros(size // high, np.uint8)
        rows = np.frombuffer(numbers.take(high), np.uint8) if row_ways > 1 else rows
        columns = np.frombuffer(numbers.take(size // high), np.uint8) if column_ways > 1 else columns
    if max(named) >= tables or rows.max() >= row_ways or columns.max() >= column_ways:
        raise ModelError("a plane of a block is damaged")
    return _Plane(method, size, named, rows, columns, column_ways)


def _inflated(data: memoryview, size: int) -> Symbols:
    if not size and not data:
        return np.empty(0, np.uint8)
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, size + 1)
    except zlib.error:
        raise ModelError("deflated data of a block is damaged") from None
    if len(found) != size or not unpacker.eof or unpacker.unused_data:
        raise ModelError("deflated data of a block is damaged")
    return np.frombuffer(found, np.uint8)
