"""Counting what a function does, where a test must not look at a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["calls"]


def calls(function: Callable[[], object]) -> int:
    """Return how many calls and returns the function makes, of Python's and of C's functions."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return made
