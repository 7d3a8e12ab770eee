"""The one writer of files: they appear whole, and together, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnxsqueeze.errors import UsageError

__all__ = ["Files", "whole"]


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
        place = path.resolve()
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
