"""Shapes of what a graph computes on a feed: as ONNX infers them, and from a run where inference gives up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.shapes.inferred import Shape, infer_shapes, shape_of
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.dtypes import numpy_type
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session

__all__ = ["activations", "inferred_and_measured"]

Feed = Mapping[str, NDArray[np.generic]]


def activations(graph: Graph, feed: Feed) -> dict[str, tuple[Shape, np.dtype[np.generic]]]:
    """Return shape and type of every tensor that the main graph computes on ``feed``.

    Left out are tensors whose type is not known, and those whose shape neither inference nor a run gives.
    """
    inferred, shapes = inferred_and_measured(graph, feed)
    found: dict[str, tuple[Shape, np.dtype[np.generic]]] = {}
    for info in (*inferred.value_info, *inferred.output):
        shape, dtype = shapes.get(info.name), numpy_type(info.type.tensor_type.elem_type)
        if shape is not None and dtype is not None:
            found[info.name] = shape, dtype
    return found


def inferred_and_measured(graph: Graph, feed: Feed) -> tuple[onnx.GraphProto, dict[str, Shape]]:
    """Return the graph without weights as inference leaves it, and the shapes on ``feed`` of what it computes.

    Shapes of bodies are inferred from those around them and not measured.
    """
    found = infer_shapes(graph, feed)
    known = _complete(found)
    types = {info.name: info.type for info in (*found.value_info, *found.output)}
    missing = {str(t.name) for node in graph.nodes for t in node.outputs if t.name} - known.keys()
    ran = _measured(graph, feed, [name for name in missing if not _is_other(types.get(name))], types)
    if ran and any(scope is not graph for _, scope in walk(graph)):  # bodies learn from what is around them
        outputs = {str(t.name) for t in graph.outputs}
        found = infer_shapes(graph, feed, _infos({n: s for n, s in ran.items() if n not in outputs}, types))
        known = _complete(found)
    return found, {**known, **ran}


def _infos(shapes: Mapping[str, Shape], types: Mapping[str, onnx.TypeProto]) -> Iterator[onnx.ValueInfoProto]:
    for name, shape in shapes.items():
        if name in types:
            yield onnx.helper.make_tensor_value_info(name, types[name].tensor_type.elem_type, shape)


def _complete(graph: onnx.GraphProto) -> dict[str, Shape]:
    pairs = ((info.name, shape_of(info)) for info in (*graph.value_info, *graph.output))
    return {name: shape for name, shape in pairs if shape is not None}


def _measured(graph: Graph, feed: Feed, names: Sequence[str], types: Mapping[str, onnx.TypeProto]) -> dict[str, Shape]:
    """Return the shapes that tensors of the main graph have in one run; those that no run gives are left out."""
    for asked in (names, [name for name in names if name in types]):  # what has no type may be a sequence
        with suppress(ModelError, FeedError):
            return _ran(graph, feed, set(asked))
    return {}


def _ran(graph: Graph, feed: Feed, names: set[str]) -> dict[str, Shape]:
    """Let ONNX Runtime itself take the shapes, so that no tensor is kept longer than it is needed."""
    if not names:
        return {}
    copy = edit.duplicate(graph)
    made = [tensor for node in copy.nodes for tensor in node.outputs if tensor.name in names]
    shapes = {str(t.name): edit.insert(copy, copy, "Shape", [t], f"{t.name}_shape") for t in made}
    if not shapes:
        return {}
    copy.outputs.clear()
    copy.outputs.extend(shapes.values())
    # without optimizations the shapes are those of the graph as it is, and opening a session is quick
    values = Session(copy, optimize="none").run({k: v for k, v in feed.items() if k in {t.name for t in copy.inputs}})
    return {name: tuple(int(d) for d in np.asarray(values[str(out.name)])) for name, out in shapes.items()}


def _is_other(kind: onnx.TypeProto | None) -> bool:
    return kind is not None and kind.WhichOneof("value") not in (None, "tensor_type")
