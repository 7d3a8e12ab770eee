"""The frame of a container: header, blocks, and numbers in them; every size is checked before it is used."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from onnxsqueeze.errors import ModelError

__all__ = [
    "BLOCK",
    "DEFLATED",
    "ENTROPY",
    "MAGIC",
    "RAW",
    "ZSTD",
    "Block",
    "Member",
    "Numbers",
    "block",
    "header",
    "numbers",
    "read_header",
    "scan",
]

MAGIC = b"\x89OSQ\r\n\x1a\n"
VERSION = 1
BLOCK = 1 << 24
"""Raw bytes of a block at most."""
NAMES = 1 << 20
"""Bytes of the list of files at most."""
META = 1 << 20
"""Bytes of a block's description at most, besides one for each raw byte."""
RAW, ENTROPY, DEFLATED, ZSTD = range(4)
"""How a plane is written."""

_FRONT = struct.Struct("<8sHHI")
_FILE = struct.Struct("<QH")
_BLOCK = struct.Struct("<IIII")


@dataclass(frozen=True)
class Member:
    """A file in a container: its name, with ``/`` between folders, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Block:
    """A block as it stands in a container: raw bytes, their CRC-32, the deflated description, the coded planes."""

    size: int
    crc: int
    meta: memoryview
    body: memoryview

    def description(self) -> bytes:
        """Return the description; ModelError if it is damaged or larger than a block of this size may have."""
        unpacker = zlib.decompressobj()
        try:
            found = unpacker.decompress(self.meta, META + self.size)
        except zlib.error:
            raise ModelError("the description of a block is damaged") from None
        if not unpacker.eof:
            raise ModelError("the description of a block is damaged")
        return found


def header(members: Sequence[Member]) -> bytes:
    """Return the header of a container with these files, the model first."""
    named = [(each.size, each.name.encode("utf-8", "surrogateescape")) for each in members]
    names = b"".join(_FILE.pack(size, len(name)) + name for size, name in named)
    front = _FRONT.pack(MAGIC, VERSION, len(members), len(names)) + names
    return front + struct.pack("<I", zlib.crc32(front))


def read_header(data: memoryview) -> tuple[list[Member], int]:
    """Return the files of a container and where its blocks begin. Raises ModelError if it is none."""
    if bytes(data[:8]) != MAGIC:
        raise ModelError("not a container of onnxsqueeze")
    if len(data) < _FRONT.size + 4:
        raise ModelError("the container is cut short")
    _, version, count, length = _FRONT.unpack_from(data)
    if version != VERSION:
        raise ModelError(
            f"the container has version {version}, and this reads version {VERSION}; install a newer onnxsqueeze"
        )
    end = _FRONT.size + length
    if length > NAMES or end + 4 > len(data):
        raise ModelError("the container is cut short, or its header is damaged")
    if zlib.crc32(data[:end]) != int.from_bytes(data[end : end + 4], "little"):
        raise ModelError("the header of the container is damaged")
    members = []
    at = _FRONT.size
    for _ in range(count):
        if at + _FILE.size > end:
            raise ModelError("the header of the container is damaged")
        size, long = _FILE.unpack_from(data, at)
        at += _FILE.size + long
        if at > end:
            raise ModelError("the header of the container is damaged")
        members.append(Member(bytes(data[at - long : at]).decode("utf-8", "surrogateescape"), size))
    if at != end or not members:
        raise ModelError("the header of the container is damaged")
    if len({each.name for each in members}) < len(members):
        raise ModelError("the container holds two files of one name")
    return members, end + 4


def block(size: int, crc: int, meta: bytes, body: bytes) -> bytes:
    """Return a block as it stands in a container."""
    return _BLOCK.pack(size, crc, len(meta), len(body)) + meta + body


def scan(data: memoryview) -> tuple[list[Member], list[Block]]:
    """Return the files and the blocks of a container, sure that all of it is there; ModelError if it is not."""
    members, at = read_header(data)
    left = sum(each.size for each in members)
    blocks = []
    while left:
        if at + _BLOCK.size > len(data):
            raise ModelError("the container is cut short")
        size, crc, meta, body = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        if not 0 < size <= min(BLOCK, left):
            raise ModelError("a block of the container is damaged")
        if at + meta + body > len(data):
            raise ModelError("the container is cut short, or a block of it is damaged")
        blocks.append(Block(size, crc, data[at : at + meta], data[at + meta : at + meta + body]))
        at += meta + body
        left -= size
    if at != len(data):
        raise ModelError(f"{len(data) - at} bytes follow the last block of the container")
    return members, blocks


def numbers(*values: int) -> bytes:
    """Return numbers in 7-bit groups, the lowest first, each but the last with 128 added."""
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


class Numbers:
    """Reads numbers and runs of bytes from a description; ModelError where they end too soon or are too large."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.at = 0

    def next(self, most: int) -> int:
        """Return the next number, which must not be over ``most``."""
        value = shift = 0
        while self.at < len(self.data) and shift < 63:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value > most:
                    raise ModelError("a number in a block is too large")
                return value
            shift += 7
        raise ModelError("the description of a block is damaged")

    def take(self, count: int) -> memoryview:
        """Return the next ``count`` bytes."""
        if count > len(self.data) - self.at:
            raise ModelError("the description of a block ends too soon")
        self.at += count
        return self.data[self.at - count : self.at]
