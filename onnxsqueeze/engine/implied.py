"""Passes that nobody named: what cleans and widens before, and what stores in 16 bits at the end."""

from __future__ import annotations

from collections.abc import Sequence

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import Site
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.order import IMPLIED
from onnxsqueeze.engine.recipe import Ingredient
from onnxsqueeze.engine.step import quantized
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.techniques.floats.widened import computes_in, mostly_halves

__all__ = ["CLOSING", "finds", "with_implied"]

OPENING = "float32"
"""The pass that runs before those that look at weights, if the model computes in 16-bit floats."""
CLOSING = "half"
"""The pass that runs after a pipeline with ``clean``: it stores in 16 bits what is exact in them."""


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
