"""The order of passes: what each needs before it and cannot follow, and the order that is right."""

from __future__ import annotations

from collections.abc import Sequence

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import Site
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import spec
from onnxsqueeze.engine.recipe import Ingredient
from onnxsqueeze.engine.step import quantized
from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.techniques.floats.widened import computes_in, mostly_halves

__all__ = ["CLOSING", "IMPLIED", "OPENING", "finds", "refuse_order", "with_implied"]

IMPLIED = ("clean", "canonical")
"""Passes that run before the first one that wants a clean graph, unless the pipeline names them."""
OPENING = "float32"
"""The pass that runs before those that look at weights, if the model computes in 16-bit floats."""
CLOSING = "half"
"""The pass that runs after a pipeline with ``clean``: it stores in 16 bits what is exact in them."""


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


def with_implied(steps: Sequence[Ingredient], graph: Graph) -> list[tuple[Ingredient, bool]]:
    """Put what cleans before the first pass that wants a clean graph, and what closes at the end, unless named."""
    explicit = [(each, False) for each in steps]
    named = {each.pass_.name for each in steps}
    first = next((i for i, each in enumerate(steps) if each.pass_.cleans_first), None)
    wide = _widening(steps, graph)
    last = f"{CLOSING}{{type={wide[1]}}}" if wide and mostly_halves(View(graph)) else f"{CLOSING}{{exact}}"
    closing = [] if CLOSING in named else [(Ingredient(registry.build(last)[0]), True)]
    if first is None:
        return [*explicit, *closing] if IMPLIED[0] in named else explicit
    missing = [registry.find(name)() for name in IMPLIED if name not in named]
    implied = [(Ingredient(p), True) for p in missing if not (p.float_only and quantized(graph))]
    implied = [*([(Ingredient(wide[0]), True)] if wide and OPENING not in named else []), *implied]
    return [*explicit[:first], *implied, *explicit[first:], *closing]


def finds(pass_: Pass, graph: Graph) -> bool:
    """Return whether a pass that needs no statistics has something to do."""
    return any(isinstance(entry, Site) for entry in pass_.plan(View(graph), Statistics()))


def _widening(steps: Sequence[Ingredient], graph: Graph) -> tuple[Pass, str] | None:
    """Return the pass that makes float32 of 16-bit weights, and their type, if a pass looks at them."""
    found = computes_in(View(graph))
    looks = any(each.pass_.cleans_first and each.pass_.float_only for each in steps if each.pass_.name not in IMPLIED)
    return (registry.find(OPENING)(), found[1].name) if found and looks else None


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
