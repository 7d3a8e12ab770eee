"""Calibration data from files and Python, checked, never unpickled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxsqueeze.lazy import hand_on

if TYPE_CHECKING:
    from onnxsqueeze.feeds.reading import read as read

_HOMES = {
    "read": "onnxsqueeze.feeds.reading",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    return hand_on(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
