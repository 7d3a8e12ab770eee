"""Parts of a file as planes of bytes that are spread alike: nibbles apart, exponents apart, indices of few values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.container.tables import Symbols

__all__ = ["NIBBLES", "PLAIN", "ROTATED", "SPLIT", "VALUES", "count", "few", "join", "split"]

PLAIN, NIBBLES, SPLIT, ROTATED, VALUES = range(5)
"""Bytes as they are; half bytes, the lower first; byte k of every element; that with the sign moved to the end, so that
the last plane of a float32 or bfloat16 is its exponent; the index of every element among its values."""
FEW = 256
PROBE = 4096
CHUNK = 1 << 15
"""Elements that are joined at a time, so that they stay in the cache."""


def count(kind: int, width: int) -> int:
    """Return how many planes a part of elements of ``width`` bytes has."""
    return width if kind in (SPLIT, ROTATED) else 1


def split(data: memoryview, kind: int, width: int, values: Symbols | None = None) -> list[Symbols]:
    """Return the planes of a part; ``values`` is the sorted table of ``few``."""
    plain = np.frombuffer(data, np.uint8)
    if kind == PLAIN:
        return [plain]
    if kind == NIBBLES:
        return [np.stack([plain & 15, plain >> 4], axis=-1).reshape(-1)]
    elements = np.frombuffer(data, f"<u{width}")
    if kind == VALUES:
        assert values is not None
        return [np.searchsorted(values.view(f"<u{width}"), elements).astype(np.uint8)]
    if kind == ROTATED:
        elements = elements << 1 | elements >> 8 * width - 1
    grid = np.ascontiguousarray(elements).view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(grid[:, k]) for k in range(width)]


def join(planes: Sequence[Symbols], kind: int, width: int, values: Symbols | None, out: memoryview) -> None:
    """Write the part that has these planes to ``out``; what ``split`` has split is there again."""
    target = np.frombuffer(out, np.uint8)
    if kind == PLAIN:
        target[:] = planes[0]
    elif kind == NIBBLES:
        np.bitwise_or(planes[0][1::2] << 4, planes[0][::2] & 15, out=target)
    elif kind == VALUES:
        assert values is not None
        table = values.view(f"<u{width}")
        np.frombuffer(out, f"<u{width}")[:] = table.take(planes[0], mode="clip")
    else:
        _joined(planes, kind == ROTATED, np.frombuffer(out, f"<u{width}"))


def _joined(planes: Sequence[Symbols], rotated: bool, elements: NDArray[np.unsignedinteger[Any]]) -> None:
    """Write the elements that have these bytes; arrays are made once, and nothing is cast while it is computed."""
    kind, most = elements.dtype, min(CHUNK, len(elements))
    byte, bit, top = kind.type(8), kind.type(1), kind.type(8 * kind.itemsize - 1)
    one, two = np.empty(most, kind), np.empty(most, kind)
    for start in range(0, len(elements), CHUNK):
        target = elements[start : start + CHUNK]
        found, other = one[: len(target)], two[: len(target)]
        found[:] = planes[-1][start : start + CHUNK]
        for plane in planes[-2::-1]:
            np.left_shift(found, byte, out=found)
            other[:] = plane[start : start + CHUNK]
            np.bitwise_or(found, other, out=found)
        if rotated:
            np.left_shift(found, top, out=other)
            np.right_shift(found, bit, out=found)
            np.bitwise_or(found, other, out=found)
        target[:] = found


def few(data: memoryview, width: int) -> Symbols | None:
    """Return the bytes of the elements' values in ascending order if those are at most 256 and pay, else None."""
    elements = np.frombuffer(data, f"<u{width}")
    if len(np.unique(elements[:: max(1, len(elements) // PROBE)])) > FEW:
        return None
    values = np.unique(elements)
    return np.ascontiguousarray(values).view(np.uint8) if len(values) <= min(FEW, len(elements) // 8) else None
