"""``pack`` and ``unpack``: a model and its data files in one entropy-coded container, and the same bytes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxsqueeze.container.encoding import NAMES
from onnxsqueeze.container.format import MAGIC
from onnxsqueeze.container.packing import Source, packed
from onnxsqueeze.container.unpacking import Unpacked
from onnxsqueeze.errors import ModelError, UsageError
from onnxsqueeze.files import Files
from onnxsqueeze.ir.external import DataFolder
from onnxsqueeze.ir.pieces import Packed, Place, cut, places
from onnxsqueeze.ir.reading import mapped, parsed
from onnxsqueeze.ir.sizes import tensors as every_tensor
from onnxsqueeze.ir.weights import Stored

__all__ = ["Packing", "is_packed", "opened", "pack", "packing", "unpack", "unpacked"]

THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Packing:
    """What ``pack`` has written: bytes before and after, and the tensors of 64 bytes and more."""

    before: int
    after: int
    rest: float
    """Bytes that all but these tensors takes now: the graph, names, small tensors, tables of frequencies."""
    tensors: tuple[Packed, ...]


def pack(
    model: str | os.PathLike[str], output: str | os.PathLike[str], *, coder: str = "rans", zstd: bool = False
) -> Packing:
    """Write the file ``model``, and the data files that it names, as the container ``output``, all of it or nothing.

    Each tensor is written in the smallest of several ways; one block of about 4 MiB is in memory at a time. ``coder``
    is ``rans``, the smallest, ``huffman``, the classic, or one whose decoder is a C library: ``deflate``, which opens
    several times faster for 1 to 7 % more bytes, or ``zstd`` (an extra), which is faster yet. With
    ``zstd=True`` repetitions are written by that extra where it is smaller.
    Raises ModelError for what is not a whole ONNX model or lacks some of its data, UsageError if the output cannot be
    written or is part of the input.
    """
    model, output = Path(model), Path(output)
    if coder not in NAMES:
        raise UsageError(f"coder is {', '.join(NAMES[:-1])} or {NAMES[-1]}, not {coder!r}")
    sources, files, tensors = _sources(model)
    for file in files:
        if output.exists() and output.samefile(file):
            raise UsageError(f"{output} belongs to the input model; give another name for the output")
    with Files(str(output)) as writer, writer.create(output) as out:
        return _packed(sources, tensors, NAMES.index(coder), zstd, out.write)


def packing(model: str | os.PathLike[str]) -> Packing:
    """Return what ``pack`` would write for the file ``model``, by ``rans``, and write nothing. Raises ModelError."""
    sources, _, tensors = _sources(Path(model))
    return _packed(sources, tensors, 0, False, len)


def _packed(
    sources: list[Source], tensors: list[Packed], coder: int, zstd: bool, write: Callable[[bytes], object]
) -> Packing:
    sizes: dict[int, float] = {}
    after = 0
    for part in packed(sources, coder, zstd, sizes):
        write(part)
        after += len(part)
    for number, tensor in enumerate(tensors):
        tensor.coded = sizes.get(number, 0.0)
    before = sum(len(source.data) for source in sources)
    return Packing(before, after, after - sum(tensor.coded for tensor in tensors), tuple(tensors))


def unpack(container: str | os.PathLike[str], output: str | os.PathLike[str]) -> int:
    """Write the model in the ``container`` to ``output``, byte for byte as it was, and return its bytes.

    Data files go beside it under the names that the model has for them, and never over a file that is there. Raises
    ModelError if the container is damaged or would write outside the folder, UsageError if a file cannot be written.
    """
    source, output = Path(container), Path(output)
    with _named(source):
        held = Unpacked(mapped(source), THREADS)
    if output.exists() and output.samefile(source):
        raise UsageError(f"{output} is the container itself; give another name for the output")
    paths = [output]
    folder = DataFolder(output.parent)
    for member in held.members[1:]:
        path = folder.resolve("of the container", member.name)
        try:
            taken = path.exists() or path.resolve() == output.resolve()
        except OSError as error:
            reason = f"{error.strerror}: {member.name[:80]!r}"
            raise ModelError(f"{source}: a file in it has a name that cannot be here: {reason}") from None
        if taken:
            raise UsageError(f"{path} is there already; unpack into another folder, or move it away")
        paths.append(path)
    with _named(source), Files(str(output)) as files:
        chunks = held.chunks()
        chunk = next(chunks, None)
        for member, path in zip(held.members, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.create(path) as file:
                while chunk is not None and chunk[0] is member:
                    file.write(chunk[1])
                    chunk = next(chunks, None)
    return sum(member.size for member in held.members)


def is_packed(data: memoryview) -> bool:
    """Return whether these are the bytes of a container."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def unpacked(path: Path) -> dict[str, memoryview]:
    """Return the files in a container, in memory: the model first, then its data files by their names in the model."""
    with _named(path):
        return Unpacked(mapped(path), THREADS).read()


def opened(path: Path) -> tuple[memoryview, onnx.ModelProto, dict[int, memoryview]]:
    """Return the model file in a container, its model without the data of big initializers, and those by their index.

    What stood in data files is part of the model.
    """
    files = unpacked(path)
    data = next(iter(files.values()))
    model, payloads = parsed(path, data)
    folder = DataFolder(path.parent, files)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            payloads[index] = Stored(tensor, folder).data()
            _make_internal(tensor)
            tensor.raw_data = b""
    for tensor in every_tensor(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raw = bytes(Stored(tensor, folder).data())
            _make_internal(tensor)
            tensor.raw_data = raw
    return data, model, payloads


def _make_internal(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _sources(model: Path) -> tuple[list[Source], list[Path], list[Packed]]:
    """Return the files of a model, its own first, cut into pieces, where they are, and its tensors."""
    data = mapped(model)
    if is_packed(data):
        raise UsageError(f"{model} is packed already")
    parsed(model, data)
    tensors: list[Packed] = []
    inside: list[Place] = []
    outside: dict[str, list[Place]] = {}
    for place in places(data):
        if place.location is None:
            inside.append(place)
        else:
            outside.setdefault(place.location, []).append(place)
    sources = [Source(model.name, data, cut(data, inside, tensors))]
    files = [model]
    folder = DataFolder(model.parent)
    for location, found in sorted(outside.items()):
        name = found[0].proto.name
        held = folder.whole(name, location)
        sources.append(Source(location, held, cut(held, found, tensors)))
        files.append(folder.resolve(name, location))
    return sources, files, tensors


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give errors the name of the container that they speak of."""
    try:
        yield
    except MemoryError:
        raise ModelError(f"{path}: there is not enough memory for what the container holds") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
