"""One block of a container, encoded: the kind of every part and the method of every plane with which it is smallest."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from onnxsqueeze.container import planes, zstd
from onnxsqueeze.container.contexts import Classes, classes, spread
from onnxsqueeze.container.decoding import CODERS
from onnxsqueeze.container.format import DEFLATED, ENTROPY, RAW, ZSTD, block, numbers
from onnxsqueeze.container.tables import Pool, Symbols, cost

__all__ = ["NAMES", "Piece", "encode"]

NAMES = ("rans", "huffman", "deflate", "zstd")
"""The entropy coders; the last two are C libraries, whose streams are marked by the methods of their planes."""

SMALL = 64
"""Planes of fewer numbers are deflated with the text around them."""
LANE = 2000
"""Bytes of a block for each lane, whose state takes four."""
WORTH = 0.99
"""A plane is coded if that makes it smaller than so much of it: to decode the second byte of float weights would take
as long as their exponents, for a 300th of it."""
PROBE = 1 << 14
"""Numbers on which it is tried whether repetitions pay."""


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of a file.

    ``width`` is the bytes of an element, 0 for what is no tensor; ``columns`` elements (bytes, if they are packed) are
    a row. ``floating`` elements have a sign and an exponent, ``packed`` ones are two to a byte or could be. ``tensor``
    is the number of the tensor that they belong to, −1 for none.
    """

    size: int
    width: int = 0
    columns: int = 1
    floating: bool = False
    packed: bool = False
    tensor: int = -1


@dataclass
class _Plane:
    data: Symbols
    found: Classes | None
    bits: float
    method: int = DEFLATED
    tables: list[int] = field(default_factory=list)
    numbers: bool = False
    """Whether it would be entropy-coded, so that nothing in it repeats."""
    taken: float = 0.0
    """Bytes that it takes, unless its tables say so."""


@dataclass
class _Part:
    piece: Piece
    kind: int
    width: int
    values: Symbols | None
    planes: list[_Plane]


def encode(
    data: memoryview, pieces: Sequence[Piece], coder: int = 0, with_zstd: bool = False
) -> tuple[bytes, list[float]]:
    """Return the block that holds ``data``, cut into pieces, and about how many bytes each piece takes in it."""
    parts, at = [], 0
    for piece in pieces:
        parts.append(_part(data[at : at + piece.size], piece))
        at += piece.size
    every = [plane for part in parts for plane in part.planes]
    pool = Pool()
    for plane in sorted((plane for plane in every if plane.found is not None), key=lambda plane: -len(plane.data)):
        _choose(plane, pool)
    if coder >= len(CODERS):
        for plane in every:
            plane.numbers = plane.method == ENTROPY
            plane.method = plane.method if not plane.numbers else DEFLATED if NAMES[coder] == "deflate" else ZSTD
        coder, pool = 0, Pool()
    codes = (
        np.stack([CODERS[coder].table(counts) for counts in pool.counts])
        if pool.counts
        else np.empty((0, 256), np.uint8)
    )
    deflated, squeezed = _streams(every, with_zstd)
    symbols = [plane for plane in every if plane.method == ENTROPY]
    count = sum(len(plane.data) for plane in symbols)
    body = [plane.data.tobytes() for plane in every if plane.method == RAW] + [deflated, squeezed]
    lanes = 0
    if count:
        size = sum(map(len, body)) + sum(plane.bits for plane in symbols) / 8
        lanes = min(max(int(size) // LANE, 1), count)
        stream = np.concatenate([plane.data for plane in symbols])
        contexts = np.concatenate([_contexts(plane) for plane in symbols])
        body.append(CODERS[coder].encode(stream, contexts, codes, lanes))
    meta = numbers(coder, lanes, len(codes), len(deflated), len(squeezed))
    meta += np.diff(codes, axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes() + b"".join(map(_description, parts))
    packed = block(len(data), zlib.crc32(data), zlib.compress(meta, 9), b"".join(body))
    return packed, _shares(parts, codes, coder)


def _streams(every: Sequence[_Plane], with_zstd: bool) -> tuple[bytes, bytes]:
    """Return what zlib and Zstandard make of the planes that are theirs; with ``with_zstd`` the smaller may do all."""
    mine = [plane for plane in every if plane.method == DEFLATED]
    deflated = _deflated(mine) if mine else b""
    others = [plane for plane in every if plane.method == ZSTD]
    level = zstd.FAST if any(plane.numbers for plane in others) else zstd.LEVEL
    squeezed = zstd.compress(b"".join(plane.data.tobytes() for plane in others), level) if others else b""
    if with_zstd and mine and not others:
        squeezed = zstd.compress(b"".join(plane.data.tobytes() for plane in mine))
        if len(squeezed) < len(deflated):
            for plane in mine:
                plane.method = ZSTD
            deflated, others = b"", mine
        else:
            squeezed = b""
    total = sum(len(plane.data) for plane in others)
    for plane in others:
        plane.taken = len(plane.data) * len(squeezed) / total
    return deflated, squeezed


def _deflated(found: Sequence[_Plane]) -> bytes:
    """Return one stream of zlib for these planes, in which those of numbers are Huffman codes and nothing else.

    Looking for repetitions among numbers takes long, makes them no smaller and slows the decoder down.
    """
    out, check = [b"\x78\xda"], 1
    runs = [(kind, list(run)) for kind, run in groupby(found, key=lambda plane: plane.numbers)]
    for i, (kind, run) in enumerate(runs):
        strategy, memory = (zlib.Z_HUFFMAN_ONLY, 9) if kind else (zlib.Z_DEFAULT_STRATEGY, 8)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, memory, strategy)
        data = b"".join(plane.data.tobytes() for plane in run)
        made = packer.compress(data) + packer.flush(zlib.Z_FINISH if i == len(runs) - 1 else zlib.Z_SYNC_FLUSH)
        check = zlib.adler32(data, check)
        out.append(made)
        for plane in run:
            plane.taken = len(plane.data) * len(made) / len(data)
    return b"".join([*out, check.to_bytes(4, "big")])


def _part(data: memoryview, piece: Piece) -> _Part:
    if not piece.width:
        return _Part(piece, planes.PLAIN, 1, None, [_Plane(np.frombuffer(data, np.uint8), None, 0.0)])
    ways: list[tuple[int, Symbols | None]] = [(planes.PLAIN, None)]
    if piece.width == 1 and piece.packed:
        ways.append((planes.NIBBLES, None))
    elif piece.width > 1:
        ways = [(planes.ROTATED if piece.floating else planes.SPLIT, None)]
        values = planes.few(data, piece.width)
        ways += [] if values is None else [(planes.VALUES, values)]
    tried = [_planes(data, piece, kind, values) for kind, values in ways]
    return min(tried, key=lambda part: sum(min(p.bits, 8 * len(p.data)) for p in part.planes))


def _planes(data: memoryview, piece: Piece, kind: int, values: Symbols | None) -> _Part:
    found = []
    for plane in planes.split(data, kind, piece.width, values):
        columns = piece.columns * (2 if kind == planes.NIBBLES else 1)
        shape = (len(plane) // columns, columns)
        classed = None if len(plane) < SMALL else classes(plane, shape, 16 if kind == planes.NIBBLES else 256)
        bits = 8.0 * len(plane) if classed is None else classed.bits()
        found.append(_Plane(plane, classed, bits + (8 * len(values) if values is not None else 0)))
    return _Part(piece, kind, piece.width, values, found)


def _choose(plane: _Plane, pool: Pool) -> None:
    """Decide how a plane is written, and give its classes their tables."""
    assert plane.found is not None
    r, c, _ = plane.found.counts.shape
    each = plane.found.counts.reshape(-1, 256)
    named = plane.found.bits() - float(np.sum(cost(each)))
    bits = named + sum(pool.price(counts)[0] for counts in each if counts.any())
    plain = 8.0 * len(plane.data)
    repeated = _repeated(plane.data, min(bits, plain))
    if repeated < WORTH * min(bits, plain):
        return
    if bits >= WORTH * plain:
        plane.method = RAW
        return
    plane.method = ENTROPY
    plane.tables = [pool.join(counts) if counts.any() else 0 for counts in each]
    if r * c > 1 and len(set(plane.tables)) == 1:
        plane.tables = plane.tables[:1]


def _repeated(data: Symbols, bits: float) -> float:
    """Return about how many bits the plane takes deflated, infinity where a part of it says that this does not pay."""
    probe = data[:PROBE]
    if len(zlib.compress(probe.tobytes(), 1)) * 8 * len(data) > 0.97 * bits * len(probe):
        return float("inf")
    return 8.0 * len(zlib.compress(data.tobytes(), 6))  # 9 takes ten times as long where little repeats


def _contexts(plane: _Plane) -> Symbols:
    assert plane.found is not None
    tables = np.array(plane.tables, np.uint8)
    if len(tables) == 1:
        return np.full(len(plane.data), tables[0], np.uint8)
    return tables.take(spread(plane.found.rows, plane.found.columns, plane.found.counts.shape[1]))


def _description(part: _Part) -> bytes:
    out = [numbers(part.piece.size, part.kind, part.width)]
    if part.values is not None:
        out += [numbers(len(part.values) // part.width - 1), part.values.tobytes()]
    for plane in part.planes:
        out.append(numbers(plane.method))
        if plane.method == ENTROPY:
            assert plane.found is not None
            r, c, _ = plane.found.counts.shape if len(plane.tables) > 1 else (1, 1, 0)
            out += [numbers(r, c), bytes(plane.tables)]
            if r * c > 1:
                out.append(numbers(len(plane.found.rows)))
                out += [plane.found.rows.tobytes()] if r > 1 else []
                out += [plane.found.columns.tobytes()] if c > 1 else []
    return b"".join(out)


def _shares(parts: Sequence[_Part], codes: Symbols, coder: int) -> list[float]:
    """Return about how many bytes each part takes: its symbols by the tables' shares, its share of a stream."""
    bits = [CODERS[coder].lengths(each) for each in codes]
    out = []
    for part in parts:
        total = 0.0
        for plane in part.planes:
            if plane.method == RAW:
                total += len(plane.data)
            elif plane.method == ENTROPY:
                assert plane.found is not None
                counts = plane.found.counts.reshape(-1, 256)
                counts = counts if len(plane.tables) > 1 else counts.sum(axis=0, keepdims=True)
                total += sum(float(c @ bits[t]) for c, t in zip(counts, plane.tables, strict=True)) / 8
            else:
                total += plane.taken
        out.append(total)
    return out
