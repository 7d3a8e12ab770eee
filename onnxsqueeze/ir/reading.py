"""The bytes of a model file, mapped, and the model in them without the data of its big initializers."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

from onnxsqueeze.errors import ModelError
from onnxsqueeze.ir import wire
from onnxsqueeze.ir.external import map_file

__all__ = ["mapped", "parsed"]


def mapped(path: Path) -> memoryview:
    """Return the bytes of a file, mapped into memory; ModelError says why they cannot be read."""
    try:
        return map_file(path)
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder; name the model file in it") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None


def parsed(path: Path, data: memoryview) -> tuple[onnx.ModelProto, dict[int, memoryview]]:
    """Return the model in ``data`` without the raw data of its big initializers, and those; ModelError if none."""
    if not data:
        raise ModelError(f"{path} is empty; copy or download it again")
    if bytes(data[:42]) == b"version https://git-lfs.github.com/spec/v1":
        raise ModelError(f"{path} is a pointer of Git LFS, not the model; run 'git lfs pull'")
    try:
        skeleton, payloads = wire.cut(data)
        model = onnx.ModelProto.FromString(skeleton)
    except wire.Truncated as error:
        raise ModelError(
            f"{path} is cut short: at least {error} bytes of the model are missing; copy or download it again"
        ) from None
    except (wire.Malformed, DecodeError):
        raise ModelError(f"{path} is not an ONNX model") from None
    if not model.HasField("graph") or not (model.ir_version or model.opset_import):
        raise ModelError(f"{path} is not an ONNX model")
    return model, payloads
