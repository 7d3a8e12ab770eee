"""Which processor this is, as far as profiles tell processors apart."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["flags", "machine", "matches"]

_NAMES = {"amd64": "x86_64", "aarch64": "arm64"}


def machine() -> str:
    """Return the architecture: x86_64, arm64 or what the system calls it."""
    name = platform.machine().lower()
    return _NAMES.get(name, name)


@lru_cache(1)
def flags() -> frozenset[str]:
    """Return what the processor can do in the words of Linux; nothing where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(next((value.split() for key, _, value in lines if key.strip() in ("flags", "Features")), ()))


def matches(wanted: Mapping[str, Any]) -> int:
    """Return how much of this processor a profile asks for, 0 if it asks for another one or says nothing.

    ``machine`` is the architecture, ``any`` flags of which one is enough, ``none`` flags that it must not have.
    """
    if wanted.get("machine") != machine():
        return 0
    one_of, none_of = set(wanted.get("any", ())), set(wanted.get("none", ()))
    if (one_of and not one_of & flags()) or none_of & flags():
        return 0
    return 1 + bool(one_of) + bool(none_of)
