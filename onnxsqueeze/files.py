"""Files: outputs appear whole, together, or not at all, and never where an input is; only regular files are read."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnxsqueeze.errors import UsageError

__all__ = ["Files", "open_regular", "refuse_to_overwrite", "whole"]


class Files:
    """Files that are written beside their places, and take them together when the block ends without an error.

    Links are followed. What is there and no regular file, a device or a pipe, is written to as it is. Raises UsageError
    "``what`` cannot be written: ..." for whatever the system objects to.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._pending: dict[Path, Path] = {}

    def __enter__(self) -> Files:
        return self

    @contextmanager
    def create(self, path: Path) -> Iterator[BinaryIO]:
        """Open a file that will become ``path``."""
        place = _place(path)
        if place.exists() and not place.is_file():
            with place.open("wb") as file:
                yield file
            return
        temporary = place.with_name(f".onnxsqueeze-{uuid.uuid4().hex}.tmp")
        self._pending[temporary] = place
        with temporary.open("xb") as file:
            yield file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                for temporary, path in self._pending.items():
                    temporary.replace(path)
        except OSError as problem:
            error = problem
        finally:
            for temporary in self._pending:
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"{self.what} cannot be written: {os.strerror(error.errno or 0)}") from error


@contextmanager
def whole(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a single file that appears as ``path`` when the block ends without an error; see ``Files``."""
    with Files(what) as files, files.create(path) as file:
        yield file


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; OSError if it is a pipe, a device or a socket, where reading may wait for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.open("rb")


def refuse_to_overwrite(
    outputs: Mapping[str, Path], inputs: Mapping[str, Iterable[Path]], words: Mapping[str, str]
) -> None:
    """Raise UsageError for an output that cannot be written, or that is an input or another output.

    Both are named in words: ``outputs`` by what the user wrote, such as "--report", and by what they are if ``words``
    has that, ``inputs`` by what they are, such as "the calibration data". Links are followed, and two names of one file
    are one; devices and pipes may be shared.
    """
    taken = {what: [_identity(path) for path in paths] for what, paths in inputs.items()}
    for said, path in outputs.items():
        place = _place(path)
        if place.is_dir():
            raise UsageError(f"{said} {path} is a folder: name a file")
        if place.is_symlink():
            raise UsageError(f"{said} {path} is a link that leads to itself: name a file")
        if not place.parent.is_dir():
            raise UsageError(f"{said} {path}: there is no folder {place.parent if path.is_symlink() else path.parent}")
        if place.exists() and not place.is_file():
            continue
        if not os.access(place.parent, os.W_OK):
            raise UsageError(f"{said} {path}: the folder {path.parent} cannot be written to; name a file elsewhere")
        own = _identity(path)
        for what, others in taken.items():
            if own in others:
                raise UsageError(f"{said} {path} would overwrite {what}: name another file")
        taken[words.get(said, f"what {said} writes")] = [own]


def _place(path: Path) -> Path:
    """Return where a path leads; a link that leads to itself stays one."""
    return Path(os.path.realpath(path))


def _identity(path: Path) -> object:
    """Return what two names of one file have in common."""
    try:
        found = path.stat()
        return found.st_dev, found.st_ino
    except OSError:
        return os.path.normcase(_place(path))
