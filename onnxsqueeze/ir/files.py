"""Model files to graphs and back, without loss: an untouched model is saved to the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped,unused-ignore]

from onnxsqueeze.errors import ModelError, UsageError
from onnxsqueeze.files import Files
from onnxsqueeze.ir import foreign, wire
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode, encode_with
from onnxsqueeze.ir.objects import Graph, SourceFile
from onnxsqueeze.ir.packed import is_packed, opened
from onnxsqueeze.ir.payloads import Spliced, Streamed
from onnxsqueeze.ir.reading import mapped, parsed
from onnxsqueeze.ir.weights import Stored, Weight

if TYPE_CHECKING:
    import onnx_ir
    from torch.onnx import ONNXProgram

    AnyModel: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model | ONNXProgram | Graph

__all__ = ["AnyModel", "load", "save", "serialized"]

_LIMIT = 2**31 - 1  # protobuf reads no more


def load(source: AnyModel) -> Graph:
    """Return the graph of a model file, or of a copy of a ModelProto, onnx_ir.Model, torch ONNXProgram or graph.

    A file is mapped into memory and its weights are read when somebody looks at them, so it must not be written to. One
    that ``pack`` has written is unpacked in memory, with its data files as part of the model.
    Raises ModelError for what is not a whole ONNX model, or keeps data outside of its folder, or lacks some of it, and
    UsageError for what is no model at all.

    >>> [node.op for node in load("models/mlp.onnx").nodes][-3:]
    ['BatchNormalization', 'Relu', 'Gemm']
    """
    if isinstance(source, Graph):
        return source.copy()
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return decode(model)
    if (found := foreign.to_proto(source)) is not None:
        return decode(*found)
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"a model is a path, a ModelProto, an onnx_ir.Model, an ONNXProgram or a graph, not {type(source).__name__}"
        )
    path = Path(source)
    data = mapped(path)
    if is_packed(data):
        data, model, payloads = opened(path)
    else:
        model, payloads = parsed(path, data)
    try:
        graph = decode(model, path.parent, payloads=payloads)
        others = {weight.find() for weight in graph.external}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    graph.file = SourceFile(path, data, payloads, tuple(sorted(others)))
    return graph


def save(graph: Graph, path: str | os.PathLike[str]) -> int:
    """Write ``graph`` to the file ``path``, all of it or nothing.

    Weights of 1 KiB and more go to ``<path>.data`` if the source had external data or the file would pass 2 GB; one
    weight at a time is in memory. An unchanged model without external data is written byte by byte as it was.
    Returns how many bytes were written.
    Raises UsageError if that would overwrite the input, or cannot be written.
    """
    path = Path(path)
    size = 0
    with Files(str(path)) as files:
        parts = None if graph.external else _one_file(graph)
        if parts is None:
            data = path.with_name(path.name + ".data")
            streamed = Streamed(data.name)
            parts = iter([_serialized(encode_with(graph, streamed))])
            _refuse_own(data, graph.file)
            with files.create(data) as file:
                for offset, weight in streamed.layout.items():
                    file.seek(offset)
                    file.write(weight.data())
                size += file.tell()
        _refuse_own(path, graph.file)
        with files.create(path) as file:
            for part in parts:
                file.write(part)
            size += file.tell()
    return size


def serialized(graph: Graph) -> bytes:
    """Return the graph as the bytes of a model file; its external data stays a reference. ModelError beyond 2 GB."""
    return _serialized(encode(graph))


def _one_file(graph: Graph) -> Iterator[bytes | memoryview] | None:
    """Return the pieces of a file with the weights in it; the source's own bytes if they say the same.

    None if the file would be too big.
    """
    spliced = Spliced()
    try:
        skeleton = _serialized(encode_with(graph, spliced))
    except _TooBig:
        return None
    weights = spliced.payloads
    if graph.file is not None and _is_source(graph.file, skeleton, weights):
        return iter([graph.file.data])
    if len(skeleton) + sum(weight.nbytes + 16 for weight in weights.values()) > _LIMIT:
        return None
    pieces = wire.splice(skeleton, {index: weight.nbytes for index, weight in weights.items()})
    return (weights[piece].data() if isinstance(piece, int) else piece for piece in pieces)


def _is_source(file: SourceFile, skeleton: bytes, weights: dict[int, Weight]) -> bool:
    """Whether the file has just this skeleton and these weights; its serialization may still be another."""
    same = weights.keys() == file.payloads.keys() and all(
        isinstance(weight, Stored) and weight.raw is file.payloads[index] for index, weight in weights.items()
    )
    return same and _serialized(parsed(file.path, file.data)[0]) == skeleton


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError):
        raise _TooBig("the model is beyond the 2 GB that a message can hold: save it to a file") from None


def _refuse_own(path: Path, source: SourceFile | None) -> None:
    """Raise UsageError if the path is a file of the input model, or no file."""
    for own in (source.path, *source.others) if source else ():
        if path.exists() and own.exists() and path.samefile(own):
            raise UsageError(f"{path} belongs to the input model; give another name for the output")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file that can be replaced")


class _TooBig(ModelError):
    """More than protobuf can write."""
