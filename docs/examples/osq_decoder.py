"""Unpacks a container of onnxsqueeze with NumPy alone: `python osq_decoder.py model.osq FOLDER`. Free to be copied."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np

SLOTS = 1 << 14


def number(data, at):
    """Return a number of 7-bit groups, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def frequencies(codes):
    """Return how many of 2^14 slots each symbol has, from its byte in a table."""
    found, present = np.zeros(256, np.int64), codes > 0
    level = codes[present].astype(np.int64) - 1
    weight = (8 + (level & 7)) << (level >> 3)
    found[present] = 1 + weight * (SLOTS - len(weight)) // weight.sum()
    found[np.argmax(found)] += SLOTS - found.sum()
    return found


def rans(data, contexts, codes, lanes, count):
    """Decode interleaved rANS: state x gives the symbol of slot x mod 2^14, then x = f (x >> 14) + slot - c."""
    tables = np.stack([frequencies(each) for each in codes])
    symbols = np.stack([np.repeat(np.arange(256), each) for each in tables])
    before = np.cumsum(tables, axis=1) - tables
    states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    words, at, out = np.frombuffer(data[4 * lanes :], "<u2"), 0, np.empty(count, np.uint8)
    for start in range(0, count, lanes):
        context = contexts[start : start + lanes]
        x = states[: len(context)]
        slot = x & SLOTS - 1
        symbol = symbols[context, slot]
        x[:] = tables[context, symbol] * (x >> 14) + slot - before[context, symbol]
        low = np.flatnonzero(x < 1 << 16)
        x[low] = x[low] << 16 | words[at : at + len(low)]
        at += len(low)
        out[start : start + lanes] = symbol
    return out


def huffman(data, contexts, codes, lanes, count):
    """Decode canonical Huffman codes: the upper 14 bits that a lane holds are a slot."""
    lengths = np.maximum(codes.astype(np.int64) - 1, 0)
    order = [[s for s in np.argsort(each, kind="stable") if each[s]] for each in codes]
    symbols = [np.repeat(o, 1 << 14 - lengths[k][o]) for k, o in enumerate(order)]
    bits, held = np.frombuffer(data, "<u4", lanes).astype(np.uint64), np.full(lanes, 32)
    words, at, out = np.frombuffer(data[4 * lanes :], "<u2"), 0, np.empty(count, np.uint8)
    for start in range(0, count, lanes):
        context = contexts[start : start + lanes]
        x, n = bits[: len(context)], held[: len(context)]
        slot = (x >> (n - 14).astype(np.uint64)).astype(np.int64) & SLOTS - 1
        symbol = np.stack(symbols)[context, slot]
        n -= lengths[context, symbol]
        low = np.flatnonzero(n <= 16)
        x[low] = x[low] << np.uint64(16) | words[at : at + len(low)].astype(np.uint64)
        n[low] += 16
        at += len(low)
        out[start : start + lanes] = symbol
    return out


def block(size, meta, body):
    """Return the raw bytes of a block: the planes of its parts are taken from four pools, in order."""
    meta, at = zlib.decompress(meta), 0

    def read():
        nonlocal at
        value, at = number(meta, at)
        return value

    def take(count):
        nonlocal at
        at += count
        return np.frombuffer(meta, np.uint8, count, at - count)

    coder, lanes, count, deflated, squeezed = (read() for _ in range(5))
    codes = np.add.accumulate(take(256 * count).reshape(-1, 256), axis=1, dtype=np.uint8)
    parts, contexts, sizes = [], [np.empty(0, np.int64)], [0] * 4
    while size:
        length, kind, width = read(), read(), read()
        size -= length
        values = take(width * (read() + 1)).view(f"<u{width}") if kind == 4 else None
        planes = []
        for _ in range(width if kind in (2, 3) else 1):
            method, many = read(), 2 * length if kind == 1 else length // width
            planes.append((method, sizes[method], many))
            sizes[method] += many
            if method == 1:
                r, c = read(), read()
                named = take(r * c).astype(np.int64)
                rows = read() if r * c > 1 else 1
                row = take(rows) if r > 1 else np.zeros(rows, np.uint8)
                column = take(many // rows) if c > 1 else np.zeros(many // rows, np.uint8)
                contexts.append(named[row[:, None].astype(np.int64) * c + column].reshape(-1))
        parts.append((kind, width, values, planes))
    pools = [np.frombuffer(body, np.uint8, sizes[0]), None, None, None]
    body = body[sizes[0] :]
    pools[2] = np.frombuffer(zlib.decompress(body[:deflated]) if deflated else b"", np.uint8)
    if squeezed:
        try:
            from compression import zstd  # from Python 3.14 on
        except ImportError:
            import zstandard as zstd
        pools[3] = np.frombuffer(zstd.decompress(body[deflated : deflated + squeezed]), np.uint8)
    if sizes[1]:
        decode = (rans, huffman)[coder]
        pools[1] = decode(body[deflated + squeezed :], np.concatenate(contexts), codes, lanes, sizes[1])
    return b"".join(joined(*part[:3], [pools[m][i : i + n] for m, i, n in part[3]]) for part in parts)


def joined(kind, width, values, planes):
    """Return the bytes of a part from its planes."""
    if kind == 0:
        return planes[0].tobytes()
    if kind == 1:
        return (planes[0][::2] | planes[0][1::2] << 4).astype(np.uint8).tobytes()
    if kind == 4:
        return values[planes[0]].tobytes()
    elements = np.ascontiguousarray(np.stack(planes, axis=1)).view(f"<u{width}")
    return (elements >> 1 | elements << 8 * width - 1 if kind == 3 else elements).tobytes()


def unpack(data):
    """Return the files of a container by name, the model first."""
    magic, version, count, length = struct.unpack_from("<8sHHI", data)
    assert magic == b"\x89OSQ\r\n\x1a\n" and version == 1, "not a container of version 1"
    names, at, files = [], 16, {}
    for _ in range(count):
        size, long = struct.unpack_from("<QH", data, at)
        names.append((data[at + 10 : at + 10 + long].decode(), size))
        at += 10 + long
    at, raw = 20 + length, bytearray()
    while at < len(data):
        size, crc, meta, body = struct.unpack_from("<IIII", data, at)
        at += 16 + meta + body
        raw += block(size, data[at - meta - body : at - body], data[at - body : at])
        assert zlib.crc32(raw[-size:]) == crc, "a block is damaged"
    for name, size in names:
        files[name], raw = bytes(raw[:size]), raw[size:]
    return files


if __name__ == "__main__":
    for name, content in unpack(Path(sys.argv[1]).read_bytes()).items():
        path = Path(sys.argv[2], name).resolve()
        assert path.is_relative_to(Path(sys.argv[2]).resolve()), "a file would leave the folder"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
