"""A container as ONNX Runtime takes it without a file: the model without its big weights, and those in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.packed import unpacked
from onnxsqueeze.ir.reading import parsed
from onnxsqueeze.ir.sizes import tensors

__all__ = ["InMemory", "in_memory"]

TABLE = 1 << 20
"""Bytes of a table that is worth being read where it lies."""

CHUNK = 1 << 16

_numbers = count()


@dataclass(frozen=True)
class InMemory:
    """A model, and the files with its weights under the names that it has for them.

    ONNX Runtime copies what it takes from ``files``; ``tables``, initializers by their names, it may read there.
    """

    model: bytes
    files: dict[str, memoryview]
    tables: dict[str, NDArray[np.generic]]

    def forget(self) -> None:
        """Give the memory of all but the tables back where the system can: nothing may read from it any more."""
        tables = [(_address(table), table.nbytes) for table in self.tables.values()]
        for data in self.files.values():
            held, start = data.obj, _address(data)
            inside = sorted((at - start, at - start + size) for at, size in tables if start <= at < start + data.nbytes)
            ends = [0, *(end for _, end in inside)]
            for first, last in zip(ends, [*(begin for begin, _ in inside), data.nbytes], strict=True):
                page = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
                size = last // mmap.PAGESIZE * mmap.PAGESIZE - page
                if size > 0 and isinstance(held, mmap.mmap) and hasattr(held, "madvise"):
                    held.madvise(mmap.MADV_DONTNEED, page, size)


def in_memory(path: Path, share: bool) -> InMemory:
    """Return the model in a container; ModelError if it is damaged.

    ``share`` finds the tables that are only gathered from: as they are, no kernel lays them out anew. Names of files
    are new each time, so that options of ONNX Runtime may serve for several sessions.
    """
    held = unpacked(path)
    main = next(iter(held))
    names = {name: f"container {next(_numbers)}" for name in held}
    whole = held[main]
    model, payloads = parsed(path, whole)
    for tensor in tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)
    shared = set(_gathered(model)) if share else set()
    tables = {}
    for index, raw in payloads.items():
        tensor = model.graph.initializer[index]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        dtype = numpy_type(tensor.data_type)
        if tensor.name in shared and raw.nbytes >= TABLE and dtype is not None and dtype.isbuiltin == 1:
            raw = _aligned(whole, _address(raw) - _address(whole), raw.nbytes, dtype.itemsize)
            tables[tensor.name] = np.frombuffer(raw, dtype).reshape(tuple(tensor.dims))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        at = _address(raw) - _address(whole)
        for key, value in (("location", names[main]), ("offset", at), ("length", raw.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
    return InMemory(
        bytes(model.SerializeToString()), {names[name]: data for name, data in held.items() if data}, tables
    )


def _gathered(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of what Gathers read rows of, unless something else reads it, or the caller may replace it."""
    others = {value.name for value in (*model.graph.input, *model.graph.output)}
    found: list[str] = []
    bodies = [model.graph]
    while bodies:
        for node in bodies.pop().node:
            for slot, name in enumerate(node.input):
                if slot == 0 and node.op_type == "Gather" and node.domain in ("", "ai.onnx"):
                    found.append(name)
                else:
                    others.add(name)
            for attribute in node.attribute:
                bodies += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
    yield from (name for name in found if name not in others)


def _aligned(whole: memoryview, at: int, size: int, width: int) -> memoryview:
    """Return bytes of ``whole`` where elements of ``width`` bytes may lie, up to 7 before ``at``; they are moved there.

    Before the data of a tensor of over 2^20 bytes are at least 8 that say so, which have been read.
    """
    target = at - (_address(whole) + at) % width
    for start in range(0, size if target < at else 0, CHUNK):
        part = bytes(whole[at + start : at + min(start + CHUNK, size)])
        whole[target + start : target + start + len(part)] = part
    return whole[target : target + size]


def _address(data: memoryview | NDArray[np.generic]) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
