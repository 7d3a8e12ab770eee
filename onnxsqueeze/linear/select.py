"""Which layers of a graph are seen as linear ones, and why others are not."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnxsqueeze.contract.plan import Skip
from onnxsqueeze.contract.selection import Selected
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.linear.layers import Linear
from onnxsqueeze.linear.tied import together
from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.statistics.needs import Need

__all__ = ["layers", "needs"]

LARGEST = 4096
"""Wider layers are not measured: the Gram matrix would take over 128 MB."""
SMALLEST = 16


def layers(view: View, pass_: Selected) -> Iterator[tuple[gs.Node, Linear] | Skip]:
    """Yield the layers that could be factored, and why others with a weight that the pass is asked for could not."""
    others = {id(each.node): each.reason for each in weighted(view)}

    def asked(node: gs.Node) -> bool:
        return pass_.wanted((key_of(node), str(node.name)))

    for node in view.nodes:
        layer = together(view, node, asked) if is_standard(node) else None
        layer = layer or others.get(id(node))
        if layer is None or not key_of(node):
            continue
        names = (key_of(node), str(node.name))
        if pass_.excluded(names):
            yield Skip(key_of(node), "it is excluded")
        elif not pass_.wanted(names):
            continue
        elif isinstance(layer, str):
            yield Skip(key_of(node), layer)
        elif layer.outputs < SMALLEST or layer.columns < SMALLEST or layer.parameters < 1024:
            yield Skip(layer.key, f"its weight is only {layer.outputs}x{layer.columns}")
        elif layer.columns > LARGEST:
            yield Skip(layer.key, f"its {layer.columns} columns are over {LARGEST}: too many to measure")
        else:
            yield node, layer


def needs(view: View, pass_: Selected) -> Iterator[Need]:
    """Yield a Gram matrix per input of a layer that could be factored."""
    for entry in layers(view, pass_):
        if not isinstance(entry, Skip):
            node, layer = entry
            inside = {key_of(each) for each in view.nodes if view.in_body(each)} if layer.also else set()
            if view.in_body(node):
                inside.add(layer.key)
            if not inside.intersection(layer.keys):
                yield layer.gram
                continue
            yield from (gram for key, gram in zip(layer.keys, layer.gram.each, strict=True) if key not in inside)
