"""Parts of a graph that run alone: from tensors that are known to those that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Instrument

__all__ = ["Part", "before", "behind", "cut", "varying"]

Array = NDArray[np.generic]
Kind = tuple["np.dtype[np.generic] | None", Sequence["int | str | None"]]
"""The type of a tensor and its shape."""


def cut(graph: Graph, given: Mapping[str, Kind], wanted: Sequence[str]) -> Graph:
    """Return what makes the ``wanted`` tensors of those that are ``given`` with their types and shapes, as a graph."""
    copy = edit.duplicate(graph)
    made: dict[str, gs.Tensor] = {str(t.name): t for node in copy.nodes for t in node.outputs if t.name}
    own = {str(t.name) for t in copy.inputs}
    for name, (dtype, shape) in given.items():
        if name in made and name not in own:
            tensor = made[name]
            tensor.inputs.clear()
            tensor.dtype, tensor.shape = dtype, list(shape)
            copy.inputs.append(tensor)
    copy.outputs = [made[name] for name in wanted]
    edit.tidy(copy)
    copy.inputs = [t for t in copy.inputs if t.outputs]
    return copy


class Part(Instrument):
    """A session of the nodes that make the ``wanted`` tensors of those that are ``given``, whose values are a sample.

    What is given has the types of the sample, and as many axes.
    """

    def __init__(self, graph: Graph, wanted: Sequence[str], given: Mapping[str, Array], optimize: str = "all") -> None:
        copy = cut(graph, {name: (value.dtype, [None] * value.ndim) for name, value in given.items()}, wanted)
        self.inputs = [str(t.name) for t in copy.inputs]
        super().__init__(copy, optimize=optimize)

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, object]:
        """Return the named outputs (all if None); of the feed it takes what this part reads."""
        return super().run({name: feed[name] for name in self.inputs if name in feed}, outputs)


def behind(graph: Graph, keys: Collection[str], tensors: Collection[str] = ()) -> set[int]:
    """Return the ids of the nodes with these keys, of those that read these tensors, and of all that hang on them."""
    found: set[int] = set()
    for node in graph.nodes:  # in topological order
        reads = edit.reads(node)
        if key_of(node) in keys or any(t.name in tensors or (t.inputs and id(t.inputs[0]) in found) for t in reads):
            found.add(id(node))
    return found


def varying(graph: Graph) -> set[int]:
    """Return the ids of the nodes that hang on an input of the graph: what others make is folded, not handed over."""
    return behind(graph, (), {str(t.name) for t in graph.inputs})


def before(graph: Graph, tensors: Collection[str], known: Collection[str]) -> set[int]:
    """Return the ids of the nodes that these tensors hang on, up to those that are known."""
    wanted = set(tensors)
    found: set[int] = set()
    for node in reversed(graph.nodes):
        if any(t.name in wanted and t.name not in known for t in node.outputs):
            found.add(id(node))
            wanted.update(str(t.name) for t in edit.reads(node))
    return found
