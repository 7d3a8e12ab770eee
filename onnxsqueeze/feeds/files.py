"""Files of calibration data: rows of .npz archives read on demand, and ONNX test data sets; never unpickled."""

from __future__ import annotations

import math
import threading
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsqueeze.errors import FeedError
from onnxsqueeze.files import open_regular

__all__ = ["ONE_EACH", "check_size", "load_npz", "load_protos", "npy_header", "open_npz", "reading", "size_of", "whole"]

Array = npt.NDArray[Any]

LIMIT = 2 << 30
"""Bytes that one feed may take; array headers are held to it before anything is allocated."""
ONE_EACH = "use a folder with one .npz for each feed"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while ``path`` is read into a FeedError that names it."""
    try:
        yield
    except FeedError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise FeedError(f"{path} cannot be read: {reason}; {_way_out(error)}") from error
    except Exception as error:  # numpy, zipfile, protobuf and Pillow raise a dozen unrelated types on damaged files
        raise FeedError(f"{path} cannot be read: {str(error) or type(error).__name__}; write the file again") from error


def _way_out(error: OSError) -> str:
    return "give regular files" if error.strerror == "it is not a regular file" else "write the file again"


class _Rows:
    """The rows of one array in an .npz, decompressed on access; reading forward never reads a byte twice."""

    def __init__(self, path: Path, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._file, self._start, self._lock = path, file, file.tell(), threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(len(self))
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with reading(self._path), self._lock:
            self._file.seek(self._start + start * row)
            data = self._file.read((stop - start) * row)
            rows_read: Array = np.ndarray((stop - start, *self.shape[1:]), self.dtype, data)
            return rows_read


def open_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of an .npz, rows unread where its layout allows that."""
    arrays: dict[str, Any] = {}
    whole = 0
    with reading(path), ExitStack() as stack:
        archive = zipfile.ZipFile(stack.enter_context(open_regular(path)))
        for member in archive.namelist():
            file = archive.open(member)
            shape, by_column, dtype = npy_header(file, f"{path}: '{member.removesuffix('.npy')}'")
            array: Any = _Rows(path, file, shape, dtype) if shape else None
            if by_column or not shape:
                size = math.prod(shape) * dtype.itemsize
                whole += size
                check_size(whole, str(path))
                array = np.ndarray(shape, dtype, file.read(size), order="F")
            arrays[member.removesuffix(".npy")] = array
        weakref.finalize(archive, stack.pop_all().close)  # with the last array that reads from it
    return arrays


def load_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz, all of them read."""
    arrays = open_npz(path)
    check_size(sum(map(size_of, arrays.values())), str(path))
    return {name: whole(array) for name, array in arrays.items()}


def npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an .npy and refuse what may not be loaded."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # later versions exist for long headers, which only structured arrays have
        raise FeedError(f"{where} is in npy format {version[0]}.{version[1]}; save plain numbers")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    if min(shape, default=0) < 0:
        raise FeedError(f"{where} has the shape {list(shape)}; write the file again")
    if dtype.hasobject:
        raise FeedError(f"{where} holds Python objects, and unpickling them could run code; save plain numbers")
    return shape, by_column, dtype


def load_protos(folder: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read the input_N.pb of one test data set; a tensor without one of the inputs' ``names`` is the N-th."""
    feed: dict[str, Array] = {}
    for file in folder.glob("input_*.pb"):
        with reading(file):
            check_size(file.stat().st_size, str(file))
            with open_regular(file) as opened:
                tensor = onnx.TensorProto.FromString(opened.read())
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise FeedError(f"{file} keeps its values in another file; save the tensor in one piece")
            position = int(file.stem.removeprefix("input_"))
            if tensor.name not in names and position >= len(names):
                raise FeedError(f"{file}: the model has no input {position} and none called '{tensor.name}'; remove it")
            name = tensor.name if tensor.name in names else names[position]
            if name in feed:
                raise FeedError(f"{folder} has two tensors for the input '{name}'; remove one")
            feed[name] = numpy_helper.to_array(tensor)
    return feed


def check_size(size: int, where: str) -> None:
    """Raise FeedError for what needs more bytes at once than a feed may take."""
    if size > LIMIT:
        raise FeedError(f"{where} needs {size / 2**30:.1f} GiB at once, more than {LIMIT / 2**30:.0f}; {ONE_EACH}")


def size_of(array: Any) -> int:
    """Return the bytes of an array, or of rows that are not read yet."""
    return int(math.prod(array.shape) * array.dtype.itemsize)


def whole(array: Any) -> Array:
    """Return the array with all its rows read."""
    return np.array(array[:] if array.shape else array)
