"""Where a graph can be cut in two: tensors that all else behind them is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of

__all__ = ["Cut", "cuts"]

PASSING = frozenset(["Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "DequantizeLinear"])
"""Operators behind which a cut would only have lost the axes, or integers."""
KINDS = ("float32", "int8", "uint8")
"""Types of tensors that a model is cut at; integers where quantization has made them."""


@dataclass(frozen=True)
class Cut:
    """A tensor by name and the share of the multiply-accumulates that come before it."""

    tensor: str
    share: float


def cuts(view: View, counts: Mapping[str, int]) -> list[Cut]:
    """Return the tensors at which nothing else crosses from the nodes before to those behind, in order.

    ``counts`` are multiply-accumulates by the key of a node. Of neighbours with no arithmetic between them the last is
    taken: behind a Relu, not in front of it; at an integer, not at the float that is rounded to it.
    """
    graph = view.graph
    last: dict[int, int] = {}
    for i, node in enumerate(graph.nodes):
        for tensor in edit.reads(node):
            last[id(tensor)] = i
    last |= {id(tensor): len(graph.nodes) for tensor in graph.outputs}
    changing = {id(tensor) for tensor in graph.inputs}
    alive = {id(tensor): last.get(id(tensor), -1) for tensor in graph.inputs}
    total = max(sum(counts.values()), 1)
    done, found = 0, list[Cut]()
    for i, node in enumerate(graph.nodes):
        done += counts.get(key_of(node), 0)
        if any(id(tensor) in changing for tensor in edit.reads(node)):
            made = [tensor for tensor in node.outputs if tensor.name]
            changing |= {id(tensor) for tensor in made}
            alive |= {id(tensor): last.get(id(tensor), -1) for tensor in made}
        alive = {each: until for each, until in alive.items() if until > i}
        if len(alive) != 1 or not 0 < done < total:
            continue
        tensor = next((t for t in node.outputs if id(t) in alive), None)
        dtype = None if tensor is None else view.dtype(tensor)
        if tensor is None or dtype is None or dtype.name not in KINDS or view.is_output(tensor):
            continue
        if node.op in PASSING or (dtype != np.float32 and node.op != "QuantizeLinear"):
            continue
        if found and found[-1].share == done / total:
            found.pop()
        found.append(Cut(str(tensor.name), done / total))
    return found
