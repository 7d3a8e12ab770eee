"""Layers on one weight, which are edited together: what only one of them gives up would stay in the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.linear.layers import Linear, describe

__all__ = ["together"]


def together(view: View, node: gs.Node, wanted: Callable[[gs.Node], bool]) -> Linear | str | None:
    """Return a layer with all others on its weight, which the first of them stands for.

    They must be ``wanted`` and alike but for their inputs; a str says why a layer cannot be one of them, or which one
    stands for it. None if it is no layer with a constant weight.
    """
    layer, weight = describe(view, node), node.inputs[1] if len(node.inputs) > 1 else None
    if not isinstance(layer, str) or not isinstance(weight, gs.Constant) or len(weight.outputs) < 2:
        return layer
    mine = describe(view, node, shared=True)
    if not isinstance(mine, Linear):
        return mine
    at = {id(each): i for i, each in enumerate(view.nodes)}
    readers = sorted(weight.outputs, key=lambda each: at.get(id(each), -1))
    found: list[Linear] = []
    for reader in readers:
        other = describe(view, reader, shared=True)
        fits = isinstance(other, Linear) and reader.inputs[1] is weight and id(reader) in at and wanted(reader)
        if not fits or not isinstance(other, Linear) or _apart(other) != _apart(mine):
            return f"its weight is shared with '{key_of(reader)}', which cannot be treated alike"
        found.append(other)
    first = found[0]
    if first.key != mine.key:
        return f"it shares the weight of '{first.key}', and what is done about it"
    gram = replace(first.gram, others=tuple(other.gram for other in found[1:]))
    return replace(first, gram=gram, also=tuple(other.key for other in found[1:]))


def _apart(layer: Linear) -> Linear:
    return replace(layer, key="", gram=replace(layer.gram, tensor=""))
