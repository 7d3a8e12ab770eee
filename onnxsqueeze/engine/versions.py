"""Versions of what a result hangs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]


def versions() -> str:
    """Return the versions of this project and of what it runs on, in words."""
    named = ("onnxsqueeze", "onnxruntime", "onnx", "numpy")
    return ", ".join([*(f"{each} {_version(each)}" for each in named), f"Python {platform.python_version()}"])


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+unknown"
