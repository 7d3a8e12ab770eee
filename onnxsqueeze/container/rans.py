"""Interleaved rANS in NumPy: many states side by side, 32 bits each, which take and give 16 bits at a time.

J. Duda, Asymmetric numeral systems, arXiv:1311.2540; F. Giesen, Interleaved entropy coders, arXiv:1402.3392. With the
frequency f of a symbol s and the sum c of those before it, of 2^14: coding is x ← ⌊x/f⌋·2^14 + c + x mod f, decoding
s = slot[x mod 2^14] and x ← f·⌊x/2^14⌋ + x mod 2^14 − c. Symbol i belongs to lane i mod L.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.container.tables import BITS, SLOTS, Codes, Symbols, code, frequencies, slots
from onnxsqueeze.errors import ModelError

__all__ = ["decode", "encode", "lengths", "table"]

LOW = 1 << 16

table = code
"""How this coder writes a table of counts."""


def lengths(codes: Codes) -> NDArray[np.float64]:
    """Return how many bits a symbol takes by one table, 0 for those that it does not have."""
    share = frequencies(codes)
    return np.asarray(np.where(share > 0, BITS - np.log2(np.maximum(share, 1)), 0.0))


def encode(symbols: Symbols, contexts: Symbols, codes: Codes, lanes: int) -> bytes:
    """Return the states and words of ``symbols``, each by the table that ``contexts`` names; ``codes`` is [K, 256]."""
    counts = np.stack([frequencies(each) for each in codes])
    before = (np.cumsum(counts, axis=1) - counts).astype(np.uint32).reshape(-1)
    wide = counts.reshape(-1).astype(np.uint32)
    limit = np.minimum(counts.reshape(-1).astype(np.uint64) << np.uint64(32 - BITS), 2**32 - 1).astype(np.uint32)
    states = np.full(lanes, LOW, np.uint32)
    words: list[NDArray[np.uint16]] = []
    single = len(codes) == 1
    for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        part = symbols[start : start + lanes]
        index = part if single else contexts[start : start + lanes].astype(np.uint32) << np.uint32(8) | part
        x, f = states[: len(part)], wide.take(index)
        full = np.flatnonzero(x >= limit.take(index))
        high = x[full]
        words.append(high.astype(np.uint16))
        x[full] = high >> np.uint32(16)
        quotient = x // f
        x -= quotient * f
        x += quotient << np.uint32(BITS)
        x += before.take(index)
    return states.astype("<u4").tobytes() + np.concatenate(words[::-1]).astype("<u2").tobytes()


def decode(data: memoryview, contexts: Symbols | None, codes: Codes, lanes: int, count: int) -> Symbols:
    """Return ``count`` symbols; ``contexts`` may be None where there is one table. ModelError if it is damaged."""
    tables = np.stack([frequencies(each) for each in codes])
    if not tables.any(axis=1).all():
        raise ModelError("a table of frequencies is empty")
    symbol = np.concatenate([slots(each) for each in tables])
    before = np.cumsum(tables, axis=1) - tables
    both = (tables.astype(np.uint32) << np.uint32(BITS) | before.astype(np.uint32)).reshape(-1)
    states = np.frombuffer(data[: 4 * lanes], "<u4").astype(np.uint32)
    words = np.frombuffer(data[4 * lanes :], "<u2").astype(np.uint32)
    out = np.empty(count, np.uint8)
    mask, shift = np.uint32(SLOTS - 1), np.uint32(BITS)
    at = 0
    for start in range(0, count, lanes):
        part = out[start : start + lanes]
        x = states[: len(part)]
        slot = x & mask
        if contexts is None:
            symbol.take(slot, out=part, mode="clip")
            f = both.take(part, mode="clip")
        else:
            context = contexts[start : start + lanes].astype(np.uint32)
            symbol.take(context << shift | slot, out=part, mode="clip")
            f = both.take(context << np.uint32(8) | part, mode="clip")
        x >>= shift
        x *= f >> shift
        x += slot
        x -= f & mask
        low = np.flatnonzero(x < LOW)
        end = at + len(low)
        if end > len(words):
            raise ModelError("coded data ends too soon")
        x[low] = x[low] << np.uint32(16) | words[at:end]
        at = end
    if at != len(words) or (states != LOW).any():
        raise ModelError("coded data does not end where it should")
    return out
