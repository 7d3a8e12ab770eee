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
    owner = symbol.reshape(-1, SLOTS).astype(np.intp)
    ahead = np.arange(SLOTS, dtype=np.uint32) - np.take_along_axis(np.cumsum(tables, axis=1) - tables, owner, 1)
    step = (np.take_along_axis(tables, owner, 1) << np.uint32(16) | ahead).astype(np.uint32).reshape(-1)
    states = np.frombuffer(data[: 4 * lanes], "<u4").astype(np.uint32)
    words = np.frombuffer(data[4 * lanes :], "<u2").astype(np.uint32)
    out = np.empty(count, np.uint8)
    # arrays that are made once: small as they are, to make them would take as long as to fill them
    x, place, f, slot = states, np.empty(lanes, np.intp), np.empty(lanes, np.uint32), np.empty(lanes, np.uint32)
    at = 0
    for start in range(0, count, lanes):
        part = out[start : start + lanes]
        if len(part) < lanes:  # the last step
            x, place, f, slot = x[: len(part)], place[: len(part)], f[: len(part)], slot[: len(part)]
        np.bitwise_and(x, np.uint32(SLOTS - 1), out=slot)
        if contexts is None:
            place[:] = slot
        else:
            place[:] = contexts[start : start + lanes]
            place <<= BITS
            place |= slot
        symbol.take(place, out=part, mode="clip")
        step.take(place, out=f, mode="clip")
        x >>= np.uint32(BITS)
        x *= np.right_shift(f, np.uint32(16), out=slot)
        x += np.bitwise_and(f, np.uint32(0xFFFF), out=f)
        low = (x < LOW).nonzero()[0]
        end = at + len(low)
        if end > len(words):
            raise ModelError("coded data ends too soon")
        full = x.take(low)
        full <<= np.uint32(16)
        full |= words[at:end]
        x[low] = full
        at = end
    if at != len(words) or (states != LOW).any():
        raise ModelError("coded data does not end where it should")
    return out
