"""Model files to graphs and back, without loss: an untouched model is saved to the same bytes."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxsqueeze.decode import decode
from onnxsqueeze.encode import SMALL, Inline, encode, encode_with
from onnxsqueeze.errors import ModelError, UsageError
from onnxsqueeze.graph import Function, Graph, Node
from onnxsqueeze.weights import Stored, Weight

__all__ = ["Function", "Graph", "Node", "decode", "encode", "load", "save"]


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> Graph:
    """Return the graph of a model file or of a copy of a ModelProto; weights are read when they are looked at."""
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return decode(model)
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX model") from None
    if not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model")
    graph = decode(model, path.parent)
    graph.path = path
    return graph


class _Streamed(Inline):
    """Lays big weights out one after the other in a data file."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.end = 0
        self.layout: list[tuple[int, Weight]] = []

    def keeps(self, weight: Stored) -> bool:
        return not weight.external and weight.raw is None and weight.nbytes < SMALL

    def place(self, tensor: onnx.TensorProto, weight: Weight, index: int | None) -> None:
        if weight.nbytes < SMALL:
            return super().place(tensor, weight, index)
        offset = -(-self.end // 4096) * 4096
        self.layout.append((offset, weight))
        self.end = offset + weight.nbytes
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", offset), ("length", weight.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return None


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``graph`` to ``path``, all or nothing; weights go to ``<path>.data`` if it had or needs external data."""
    path = Path(path)
    if graph.path is not None and path.exists() and path.samefile(graph.path):
        raise UsageError(f"{path} is the input; give another output file")
    tag = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}.{tag}")
    data = path.with_name(f".{path.name}.{tag}.data")
    try:
        if graph.external:
            placement = _Streamed(path.name + ".data")
            model = encode_with(graph, placement)
            with data.open("xb") as file:
                for offset, weight in placement.layout:
                    file.seek(offset)
                    file.write(weight.data())
        else:
            model = encode(graph)
        temporary.write_bytes(model.SerializeToString())
        if data.exists():
            data.replace(path.with_name(path.name + ".data"))
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        for leftover in (temporary, data):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
