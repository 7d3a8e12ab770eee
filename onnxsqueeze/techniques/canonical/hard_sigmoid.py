"""``k·Clip(x + b, 0, c)`` as HardSigmoid, and HardSwish as ``x·HardSigmoid(x)``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.techniques.canonical.scalars import adds_no_axes, fits, scalar_factor

__all__ = ["HardSigmoid", "hard_sigmoid", "write"]


@dataclass(frozen=True)
class HardSigmoid:
    """``gated`` is set where the activation is multiplied by its own input: HardSwish."""

    source: str
    alpha: float
    beta: float
    gated: bool
    last: str
    nodes: frozenset[int] = frozenset()


def hard_sigmoid(view: View, clip: gs.Node) -> HardSigmoid | None:
    """Return the HardSigmoid or HardSwish that the Clip is a part of."""
    add = view.producer(clip.inputs[0])
    if add is None or add.op != "Add" or not is_standard(add) or view.only_consumer(clip.inputs[0]) != clip:
        return None
    slot = next((i for i, t in enumerate(add.inputs) if view.scalar(t) is not None), None)
    low, high = view.limits(clip)
    if slot is None or low != 0 or not 0 < high < np.inf:
        return None
    shift, source = view.scalar(add.inputs[slot]), add.inputs[1 - slot]
    assert shift is not None
    tensor = clip.outputs[0]
    reader = view.only_consumer(tensor)
    factor = scalar_factor(view, reader, tensor)
    gated, nodes = False, {id(add), id(clip), id(reader)}
    if factor is None:
        if reader is None or reader.op != "Mul" or not any(t is source for t in reader.inputs):
            return None
        gated, tensor = True, reader.outputs[0]
        reader = view.only_consumer(tensor)
        factor = scalar_factor(view, reader, tensor)
    if (
        reader is None
        or factor is None
        or abs(high * factor - 1) > 1e-6
        or view.dtype(source) not in (None, np.float32)
        or not fits(1 / high, shift / high)
        or not adds_no_axes(view, add, source)
        or not adds_no_axes(view, reader, tensor)
    ):
        return None
    nodes.add(id(reader))
    return HardSigmoid(source.name, 1 / high, shift / high, gated, key_of(reader), frozenset(nodes))


def write(graph: Graph, scope: Graph, clip: gs.Node, found: HardSigmoid) -> None:
    """Put the activation in the place of the last of its nodes."""
    last, _ = edit.find(graph, found.last)
    source = _input_named(last, found.source)
    attrs = {"alpha": found.alpha, "beta": found.beta}
    if not found.gated:
        edit.replace(graph, scope, last, "HardSigmoid", [source], attrs)
        return
    gate = edit.insert(graph, scope, "HardSigmoid", [source], f"{found.last}_gate", attrs, before=last)
    edit.replace(graph, scope, last, "Mul", [source, gate])


def _input_named(node: gs.Node, name: str) -> gs.Tensor:
    """Return the tensor of that name a few nodes upstream."""
    stack = [node]
    while stack:
        current = stack.pop()
        for tensor in current.inputs:
            if tensor.name == name:
                return tensor
            stack.extend(tensor.inputs)
    raise AssertionError(name)
