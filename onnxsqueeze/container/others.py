"""What general compressors reach, for comparison."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

from onnxsqueeze.container import zstd
from onnxsqueeze.errors import UsageError

__all__ = ["others"]


def others(data: memoryview) -> Iterator[tuple[str, int]]:
    """Yield the names of compressors, each at its best level, and the bytes of ``data`` by them.

    gzip always, brotli and Zstandard where they are installed.
    """
    packer = zlib.compressobj(9, wbits=31)
    yield "gzip -9", len(packer.compress(data)) + len(packer.flush())
    with suppress(ImportError):
        yield "brotli -q 11", len(import_module("brotli").compress(bytes(data)))
    with suppress(UsageError):
        yield "zstd -19", len(zstd.compress(data))
