"""Sizes that are numbers or symbols, their products, and which axes of two shapes hold the same elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import onnx_graphsurgeon as gs

__all__ = ["Dim", "Product", "Run", "Shapes", "broadcast_shape", "over", "product", "range_of", "runs_of", "size_of"]

Dim = int | str
"""A known size or a symbol; equal symbols are equal sizes, and an unknown size is a symbol of its own."""
Product = tuple[int, tuple[str, ...]]
"""A number times symbols in alphabetical order."""

_TIMES = "\0"


class Shapes(Protocol):
    """What inferring a shape asks about those that are known."""

    def shape(self, tensor: gs.Tensor) -> tuple[Dim, ...] | None:
        """Return sizes and symbols, None if the rank is unknown."""

    def reshaped(self, node: gs.Node) -> tuple[Dim, ...] | None:
        """Return the shape after a Reshape or Flatten as products of sizes before it."""

    def integers(self, node: gs.Node, slot: int, name: str = "") -> list[int] | None:
        """Return whole numbers that are an attribute in old operator sets and a constant input in new ones."""

    def picked(self, node: gs.Node) -> list[int] | None:
        """Return which elements of a vector of known length a Slice or Gather takes."""


@dataclass(frozen=True)
class Run:
    """Neighbouring axes before and after a Reshape that hold the same elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: tuple[tuple[Dim, ...], tuple[Dim, ...]]

    @property
    def same(self) -> bool:
        """Whether one axis has become one axis."""
        return len(self.before) == len(self.after) == 1 and self.sizes[0] == self.sizes[1]

    @property
    def known(self) -> bool:
        """Whether all sizes are numbers that agree."""
        return all(isinstance(d, int) for side in self.sizes for d in side) and product(self.sizes[0]) == product(
            self.sizes[1]
        )


def runs_of(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> list[Run]:
    """Return which neighbouring axes before and after a Reshape hold the same elements."""
    runs: list[Run] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and before[i] == 1 and not (j < len(after) and after[j] == 1):
            runs.append(Run((i,), (), ((1,), ())))
            i += 1
            continue
        if j < len(after) and after[j] == 1 and not (i < len(before) and before[i] == 1):
            runs.append(Run((), (j,), ((), (1,))))
            j += 1
            continue
        k, m = i + 1, j + 1
        while (p := product(before[i:k])) != (q := product(after[j:m])):
            if k >= len(before) and m >= len(after):
                break
            shorter = _divides(p, q) if _divides(p, q) != _divides(q, p) else None
            k += k < len(before) and (shorter is not False or m >= len(after))
            m += m < len(after) and (shorter is not True or k >= len(before))
        k, m = min(k, len(before)), min(m, len(after))
        runs.append(Run(tuple(range(i, k)), tuple(range(j, m)), (before[i:k], after[j:m])))
        i, j = k, m
    return runs


def product(dims: Sequence[Dim]) -> Product:
    """Return the product of sizes."""
    symbols = [part for d in dims if isinstance(d, str) for part in d.split(_TIMES)]
    numbers = [int(s[1:]) for s in symbols if s.startswith("#")]
    number = prod(d for d in dims if isinstance(d, int)) * prod(numbers)
    return number, tuple(sorted(s for s in symbols if not s.startswith("#")))


def size_of(product: Product) -> Dim:
    """Return a product as a size, which ``product`` takes apart again."""
    number, symbols = product
    if not symbols:
        return number
    return _TIMES.join(([f"#{number}"] if number != 1 else []) + list(symbols))


def over(whole: Product, part: Product) -> Product | None:
    """Return the quotient, None if it is no product of sizes."""
    if part[0] == 0 or whole[0] % part[0]:
        return None
    left, right = Counter(whole[1]), Counter(part[1])
    return None if right - left else (whole[0] // part[0], tuple(sorted((left - right).elements())))


def _divides(part: Product, whole: Product) -> bool:
    return over(whole, part) is not None


def broadcast_shape(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim | None, ...]:
    """Return the shape that shapes are broadcast to; of different symbols any may be 1, so that is None."""
    rank = max(map(len, shapes))
    dims: list[Dim | None] = []
    for axis in range(-rank, 0):
        sizes = {s[axis] for s in shapes if len(s) >= -axis} - {1}
        known = [s for s in sizes if isinstance(s, int)]
        dims.append(1 if not sizes else known[0] if known else sizes.pop() if len(sizes) == 1 else None)
    return tuple(dims)


def range_of(node: gs.Node) -> slice:
    """Return which axes a Shape gives."""
    return slice(int(node.attrs.get("start", 0)), int(node.attrs["end"]) if "end" in node.attrs else None)
