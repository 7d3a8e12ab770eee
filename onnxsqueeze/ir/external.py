"""The data files beside a model: mapped into memory, never read outside the model's folder."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnxsqueeze.errors import ModelError

__all__ = ["DataFolder", "map_file"]


def map_file(path: Path) -> memoryview:
    """Map the regular file ``path`` read-only; the mapping lives as long as a view of it does."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ModelError(f"{path} is not a regular file")  # to open a pipe would wait for ever
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class DataFolder:
    """Reads external tensor data from the files of one folder, each mapped once, or from files ``held`` in memory."""

    def __init__(self, path: Path, held: Mapping[str, memoryview] | None = None) -> None:
        self.path = path
        self._root = Path(os.path.realpath(path))
        self._maps: dict[str, memoryview] = dict(held or {})

    def read(self, tensor: str, location: str, offset: int, length: int) -> memoryview:
        """Return ``length`` bytes at ``offset`` of the file ``location``; ModelError names it and ``tensor``."""
        data = self.whole(tensor, location)
        if offset + length > len(data):
            raise ModelError(
                f"external data file {location!r} is too short for tensor {tensor!r}: "
                f"it ends at byte {len(data)}, but {offset + length} are needed"
            )
        return data[offset : offset + length]

    def whole(self, tensor: str, location: str) -> memoryview:
        """Return all bytes of the file ``location``; ModelError names it and ``tensor``."""
        if location not in self._maps:
            self._maps[location] = self._map(tensor, location)
        return self._maps[location]

    def resolve(self, tensor: str, location: str) -> Path:
        """Return the path of the file ``location``; ModelError if it would leave the folder."""
        parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
        rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        if not location or "\0" in location or rooted or ".." in parts:
            raise ModelError(
                f"tensor {tensor!r} keeps its data in {location!r}, which is not a path inside the model's folder; "
                "save the model again with its data beside it"
            )
        path = self._root / location
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self._root):
            raise ModelError(
                f"tensor {tensor!r} keeps its data in {location!r}, a link that leaves the model's folder; "
                "copy the file into the folder"
            )
        return path

    def _map(self, tensor: str, location: str) -> memoryview:
        path = self.resolve(tensor, location)
        try:
            if not path.is_file():
                raise FileNotFoundError(path)
            return map_file(path)
        except FileNotFoundError:
            raise ModelError(
                f"external data file {location!r} of tensor {tensor!r} is missing; copy it into the model's folder too"
            ) from None
        except OSError as error:
            raise ModelError(
                f"external data file {location!r} of tensor {tensor!r} cannot be read: {error.strerror}"
            ) from error
