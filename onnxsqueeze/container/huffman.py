"""Huffman codes of up to 14 bits, many streams side by side, with the interface of ``rans``.

D. A. Huffman, A method for the construction of minimum-redundancy codes, 1952; the codes are canonical. A lane holds 32
bits and takes 16 more whenever it has 16 or fewer. A byte of a table is 1 + the length of a code, 0 for none.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.container.tables import BITS, SLOTS, Codes, Counts, Symbols
from onnxsqueeze.errors import ModelError

__all__ = ["decode", "encode", "lengths", "table"]


def table(counts: Counts) -> Codes:
    """Return the lengths of the codes for 256 counts, each as 1 + length; counts are halved until 14 bits suffice."""
    found = np.zeros(256, np.uint8)
    present = [int(symbol) for symbol in np.flatnonzero(counts)]
    counts = counts.copy()
    while present:
        heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[symbol]), symbol, (symbol,)) for symbol in present]
        depth = dict.fromkeys(present, 0)
        heapq.heapify(heap)
        while len(heap) > 1:
            one, two = heapq.heappop(heap), heapq.heappop(heap)
            both = one[2] + two[2]
            for symbol in both:
                depth[symbol] += 1
            heapq.heappush(heap, (one[0] + two[0], min(one[1], two[1]), both))
        if max(depth.values()) <= BITS:
            found[present] = [1 + depth[symbol] for symbol in present]
            break
        counts = (counts + 1) // 2
    return found


def lengths(codes: Codes) -> NDArray[np.float64]:
    """Return how many bits a symbol takes by one table, 0 for those that it does not have."""
    return np.maximum(codes.astype(np.float64) - 1, 0)


def encode(symbols: Symbols, contexts: Symbols, codes: Codes, lanes: int) -> bytes:
    """Return the first 32 bits of each lane, and the words that follow in the order in which lanes take them."""
    lengths = np.maximum(codes.astype(np.int64) - 1, 0).reshape(-1)
    starts = np.concatenate([_starts(each) for each in codes])
    rows = -(-len(symbols) // lanes)
    bits = np.zeros(lanes, np.uint64)
    held = np.zeros(lanes, np.int64)
    made: list[NDArray[np.uint16]] = []
    owners: list[NDArray[np.int64]] = []
    used = np.zeros(lanes, np.int64)
    taken: list[NDArray[np.int64]] = []
    for row in range(rows + 3):  # the last rows flush what the lanes hold, filled up with zeros
        part = symbols[row * lanes : (row + 1) * lanes]
        if row < rows:
            index = contexts[row * lanes : (row + 1) * lanes].astype(np.int64) << 8 | part
            length = lengths.take(index)
            width = slice(0, len(part))
            bits[width] = bits[width] << length.astype(np.uint64) | (starts.take(index) >> (BITS - length)).astype(
                np.uint64
            )
            held[width] += length
            before = used[width] // 16
            used[width] += length
            taken.append(np.flatnonzero(used[width] // 16 > before))
        else:
            bits <<= np.uint64(16)
            held += 16
        full = np.flatnonzero(held >= 16)
        rest = (held[full] - 16).astype(np.uint64)
        made.append((bits[full] >> rest).astype(np.uint16))
        owners.append(full)
        bits[full] &= (np.uint64(1) << rest) - np.uint64(1)
        held[full] -= 16
    order = np.argsort(np.concatenate(owners), kind="stable")
    words = np.concatenate(made)[order].astype(np.uint32)
    first = np.searchsorted(np.concatenate(owners)[order], np.arange(lanes))
    heads = words[first] << np.uint32(16) | words[first + 1]
    nth = np.full(lanes, 2, np.int64)
    out: list[NDArray[np.uint32]] = []
    for lane in taken:
        out.append(words[first[lane] + nth[lane]])
        nth[lane] += 1
    return bytes(heads.astype("<u4").tobytes() + np.concatenate(out).astype("<u2").tobytes())


def decode(data: memoryview, contexts: Symbols | None, codes: Codes, lanes: int, count: int) -> Symbols:
    """Return ``count`` symbols; ``contexts`` may be None where there is one table. ModelError if it is damaged."""
    lengths = np.maximum(codes.astype(np.int64) - 1, 0)
    if (codes > BITS + 1).any() or any(_filled(each) != SLOTS for each in codes):
        raise ModelError("a table of codes is not complete")
    symbol = np.concatenate([_slots(each) for each in codes])
    length = lengths.reshape(-1).astype(np.uint32)
    bits = np.frombuffer(data[: 4 * lanes], "<u4").astype(np.uint64)
    held = np.full(lanes, 32, np.uint64)
    words = np.frombuffer(data[4 * lanes :], "<u2").astype(np.uint64)
    out = np.empty(count, np.uint8)
    at = 0
    for start in range(0, count, lanes):
        part = out[start : start + lanes]
        x, n = bits[: len(part)], held[: len(part)]
        slot = (x >> (n - np.uint64(BITS))).astype(np.uint32) & np.uint32(SLOTS - 1)
        context = np.uint32(0) if contexts is None else contexts[start : start + lanes].astype(np.uint32)
        symbol.take(context << np.uint32(BITS) | slot, out=part, mode="clip")
        n -= length.take(context << np.uint32(8) | part, mode="clip")
        low = np.flatnonzero(n <= 16)
        end = at + len(low)
        if end > len(words):
            raise ModelError("coded data ends too soon")
        x[low] = x[low] << np.uint64(16) | words[at:end]
        n[low] += np.uint64(16)
        at = end
    if at != len(words):
        raise ModelError("coded data does not end where it should")
    return out


def _order(codes: Codes) -> NDArray[np.int64]:
    """Return the symbols with a code, the shortest first."""
    order = np.argsort(codes, kind="stable")
    return order[codes[order] > 0]


def _filled(codes: Codes) -> int:
    return int(np.sum(1 << (BITS + 1 - codes[codes > 0].astype(np.int64))))


def _slots(codes: Codes) -> NDArray[np.uint8]:
    order = _order(codes)
    return np.repeat(order.astype(np.uint8), 1 << (BITS + 1 - codes[order].astype(np.int64)))


def _starts(codes: Codes) -> NDArray[np.int64]:
    """Return the first slot of each symbol, the code in the upper bits of 14."""
    order = _order(codes)
    wide = 1 << (BITS + 1 - codes[order].astype(np.int64))
    starts = np.zeros(256, np.int64)
    starts[order] = np.cumsum(wide) - wide
    return starts
