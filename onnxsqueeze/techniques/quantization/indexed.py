"""Weights that become indices of levels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.compensation import LARGEST
from onnxsqueeze.techniques.quantization.emit.weights import HELD, values_of
from onnxsqueeze.techniques.quantization.lowbits import BITS, Weight
from onnxsqueeze.techniques.quantization.palette import Palette, fit, in_pairs

__all__ = ["Indexed"]

LEVEL = 4
"""Bytes of a level."""
PAIRED = 8
"""Levels up to which pairs are tried: 64 of them then, and with more they win little."""
SMALL = 4096
"""Weights of fewer elements, for which 256 levels would be too dear, have 64 where others have 256."""


@dataclass
class Indexed(Weight):
    """A weight of a node, seen as rows (N, K), as indices of ``levels`` levels in the fewest bits that hold them.

    With more bits there are as many levels as those have. Where an index of twice the bits for two neighbours leaves
    less error for its bytes, it is that. So many rows ``together`` share levels, at least; 0: all.
    """

    levels: int = 16
    together: int = 0
    _palettes: dict[int, Palette] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: Weight, levels: int, together: int) -> Indexed:
        """Return a weight with levels."""
        return cls(
            weight.node,
            weight.slot,
            weight.shape,
            moments=weight.moments,
            biased=weight.biased,
            levels=levels,
            together=together,
        )

    @property
    def groups(self) -> int:
        """How many tables of levels it has."""
        rows = len(self.rows(np.broadcast_to(np.float32(0), self.shape)))
        return rows // min(d for d in range(1, rows + 1) if rows % d == 0 and d >= min(self.together or rows, rows))

    @property
    def bits(self) -> tuple[int, ...]:
        """The numbers of bits that an index can have."""
        return BITS

    def bytes(self, bits: int) -> int:
        """Return how many bytes it takes with indices of so many bits a weight, levels included; about, until known."""
        levels = self._palettes[bits].levels.size if bits in self._palettes else self.groups * (1 << bits)
        return self.size * bits // 8 + LEVEL * levels

    def spared(self, bits: int) -> int:
        """Return the bits for one that should have so many: fewer than 8 where the levels would outweigh indices."""
        return 6 if bits == 8 and self.size < SMALL and self.levels <= 64 else bits

    def palette(self, bits: int, values: NDArray[np.floating]) -> Palette:
        """Return its indices and levels, which are kept unless they are large: in pairs where those win."""
        if bits in self._palettes:
            return self._palettes[bits]
        count = self.levels if 1 << bits < 2 * self.levels else 1 << bits
        rows, second = self.rows(values), self.second
        found = fit(rows, count, self.groups, second)
        may = second is not None and self.groups == 1 and not self.together and count == 1 << bits <= PAIRED
        if may and second is not None and rows.shape[1] % 2 == 0 and rows.shape[1] <= LARGEST:
            pairs = in_pairs(rows, found, second)
            more = 8 * LEVEL * (pairs.levels.size - found.levels.size) / self.size
            found = pairs if pairs.error * 4**more < found.error else found  # a bit more is a quarter of the error
        if self.size <= HELD:
            self._palettes[bits] = found
        return found

    def error(self, bits: int) -> float:
        """Return the relative squared error of the layer's output, of the weight itself where nothing was measured."""
        return self.palette(bits, values_of(self.node.inputs[self.slot])).error

    def put(self, graph: Graph, key: str, bits: int) -> None:
        """Give the node that makes ``key``, a copy of its own, the weight that levels leave."""
        node, _ = edit.find(graph, key)
        rows = self.palette(bits, values_of(self.node.inputs[self.slot])).weight
        found = np.ascontiguousarray(rows.T) if self.columns_first else rows.reshape(self.shape)
        node.inputs[self.slot] = edit.constant(graph, f"{key}_weight", found)
