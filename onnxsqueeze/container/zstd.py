"""Zstandard, for what asks for it: Python has it from 3.14 on, before that it is an extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from onnxsqueeze.container.tables import Symbols
from onnxsqueeze.errors import ModelError, UsageError

__all__ = ["FAST", "LEVEL", "compress", "decompress"]

LEVEL = 19
FAST = 3
"""The level for numbers, in which nothing repeats: higher ones make them larger."""


def compress(data: bytes | memoryview, level: int = LEVEL) -> bytes:
    """Return a frame of Zstandard. Raises UsageError if it is not installed."""
    zstd = _module()
    if hasattr(zstd, "ZstdFile"):  # Python's own
        return bytes(zstd.compress(data, level=level))
    return bytes(zstd.ZstdCompressor(level=level).compress(bytes(data)))


def decompress(data: memoryview, size: int) -> Symbols:
    """Return the ``size`` bytes of a frame; ModelError if it is damaged or holds another number of bytes."""
    if not size and not data:
        return np.empty(0, np.uint8)
    zstd = _module()
    try:
        if hasattr(zstd, "ZstdFile"):
            found = zstd.ZstdDecompressor().decompress(data, size + 1)
        elif zstd.frame_content_size(data) not in (size, -1):  # what it says is allocated
            raise ModelError("data of Zstandard in a block is damaged")
        else:
            found = zstd.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstd.ZstdError:
        raise ModelError("data of Zstandard in a block is damaged") from None
    if len(found) != size:
        raise ModelError("data of Zstandard in a block is damaged")
    return np.frombuffer(found, np.uint8)


def _module() -> Any:
    for name in ("compression.zstd", "zstandard"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise UsageError("this needs Zstandard: pip install 'onnxsqueeze[zstd]'")
