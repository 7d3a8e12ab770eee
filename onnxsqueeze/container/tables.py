"""Tables of frequencies: which share of 2**14 slots each byte has, written in one byte a symbol; and which to share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BITS", "SLOTS", "TABLES", "Codes", "Counts", "Pool", "Symbols", "code", "cost", "frequencies", "slots"]

BITS = 14
SLOTS = 1 << BITS
TABLES = 64
"""Tables of a block at most, as this packs; a reader takes 256."""

Counts = NDArray[np.int64]
Codes = NDArray[np.uint8]
Symbols = NDArray[np.uint8]
Frequencies = NDArray[np.uint32]


def code(counts: Counts) -> Codes:
    """Return 256 counts as bytes: 0 for absent, else 1 + 8e + m for about (8 + m)·2^e parts, m of three bits."""
    top = int(counts.max())
    out = np.zeros(256, np.uint8)
    if not top:
        return out
    scaled = np.maximum(counts.astype(object) * (1 << 17) // top, 8).astype(np.int64)
    exponents = np.frexp(scaled.astype(np.float64))[1] - 4
    mantissas = (scaled + (1 << exponents >> 1) >> exponents) - 8
    out[:] = np.where(counts > 0, 1 + 8 * exponents + mantissas, 0)
    return out


def frequencies(codes: Codes) -> Frequencies:
    """Return how many of the 2**14 slots each of 256 symbols has: f = 1 + ⌊w·(2^14 − n)/Σw⌋, the largest more.

    w are the parts that ``codes`` name, n how many are not 0; the first of the largest gets the rest.
    All zeros for a table without a symbol.
    """
    present = codes > 0
    found = np.zeros(256, np.int64)
    if not present.any():
        return found.astype(np.uint32)
    level = codes[present].astype(np.int64) - 1
    weight = (8 + (level & 7)) << (level >> 3)
    found[present] = 1 + weight * (SLOTS - len(weight)) // weight.sum()
    found[np.argmax(found)] += SLOTS - found.sum()
    return found.astype(np.uint32)


def slots(table: Frequencies) -> NDArray[np.uint8]:
    """Return the symbol of each of the 2**14 slots."""
    return np.repeat(np.arange(256, dtype=np.uint8), table)


def cost(counts: Counts) -> NDArray[np.float64]:
    """Return about how many bits the symbols of each row of counts take, with their table."""
    wide = counts.astype(np.float64)
    total = wide.sum(axis=-1)
    entropy = total * np.log2(np.maximum(total, 1)) - np.sum(wide * np.log2(np.maximum(wide, 1)), axis=-1)
    return np.asarray(entropy + 24 + 4.5 * np.count_nonzero(counts, axis=-1))


class Pool:
    """Tables that several planes share: counts join the table whose cost grows least by them, or found one."""

    def __init__(self) -> None:
        self.counts: list[Counts] = []

    def price(self, counts: Counts) -> tuple[float, int]:
        """Return the bits that these symbols take, and which table gives them; its number may be the next one."""
        new = float(cost(counts)) if len(self.counts) < TABLES else np.inf
        if not self.counts:
            return new, 0
        held = np.stack(self.counts)
        grown = cost(held + counts) - cost(held)
        best = int(np.argmin(grown))
        return (float(grown[best]), best) if grown[best] < new else (new, len(self.counts))

    def join(self, counts: Counts) -> int:
        """Add counts where ``price`` says, and return which table that is."""
        _, number = self.price(counts)
        if number == len(self.counts):
            self.counts.append(counts.copy())
        else:
            self.counts[number] = self.counts[number] + counts
        return number
