"""Names that a package hands on from its modules, each imported when it is first used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module

__all__ = ["hand_on"]


def hand_on(package: str, homes: Mapping[str, str], name: str) -> object:
    """Return what ``name`` is in the module that ``homes`` names for it, or the module if it has no such name.

    For ``__getattr__`` of a package, which is then not asked for the same name again.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module = import_module(homes[name])
    value: object = vars(module).get(name, module)
    setattr(sys.modules[package], name, value)
    return value
