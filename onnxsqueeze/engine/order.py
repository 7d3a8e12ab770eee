"""The order of passes: what each needs before it and cannot follow, and the order that is right."""

from __future__ import annotations

from collections.abc import Sequence

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import spec
from onnxsqueeze.errors import UsageError

__all__ = ["IMPLIED", "refuse_order"]

IMPLIED = ("clean", "canonical")
"""Passes that run before the first one that wants a clean graph, unless the pipeline names them."""


def refuse_order(passes: Sequence[Pass]) -> None:
    """Raise UsageError, before any work, for a pass that lacks one it requires or follows one it forbids.

    The message has the whole pipeline in the right order, if there is one.
    """
    for i, pass_ in enumerate(passes):
        before = [each.name for each in passes[:i]]
        implied = IMPLIED if any(each.cleans_first for each in passes[: i + 1]) else ()
        for other in passes[:i]:
            why = _against(pass_, other)
            if why is not None:
                raise UsageError(f"{pass_.name} cannot follow {other.name}{why}; {_way_out(passes, pass_, other)}")
        for name in pass_.requires:
            if name not in before and name not in implied:
                late = any(each.name == name for each in passes)
                missing = [] if late else [registry.find(name)()]
                raise UsageError(f"{pass_.name} needs {name} before it; {_write([*missing, *passes])}")


def _against(pass_: Pass, other: Pass) -> str | None:
    """Return why ``pass_`` cannot follow ``other``, in words for behind its name; None if it can."""
    if pass_.float_only and other.quantizes:
        return ", which leaves no float weights"
    return "" if other.name in pass_.forbids else None


def _way_out(passes: Sequence[Pass], pass_: Pass, other: Pass) -> str:
    if pass_.name == other.name:
        return "write it once"
    if _against(other, pass_) is not None:
        return "write one of them"
    return _write(passes)


def _write(passes: Sequence[Pass]) -> str:
    """Return advice to write the passes in the right order: each as far to the front as what it needs allows."""
    waiting, ordered = list(passes), list[Pass]()
    while waiting:
        free = [p for p in waiting if not any(_precedes(other, p) for other in waiting if other is not p)]
        if not free:
            return "no order of these passes is right: leave one out"
        ordered.append(free[0])
        waiting.remove(free[0])
    return "write " + ",".join(str(spec(each)) for each in ordered)


def _precedes(first: Pass, second: Pass) -> bool:
    return first.name in second.requires or _against(first, second) is not None
