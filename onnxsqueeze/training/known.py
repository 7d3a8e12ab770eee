"""What is known of the tensors of a graph from one run of it: shapes, types, and values that no feed changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxsqueeze.training.gradient import Known

__all__ = ["measured"]

Array = NDArray[Any]
Run = Callable[[onnx.ModelProto, Mapping[str, Array]], Sequence[Any]]
"""Runs a model on a feed and returns its outputs in order."""
LARGEST = 1 << 16
"""Elements of a constant that a rule may want to know: shapes, axes and indices."""


def measured(model: onnx.ModelProto, feed: Mapping[str, Array], run: Run) -> Known:
    """Run the model once, with all that it computes as outputs, and return what is known then.

    Shapes are those on this feed. Values are those of constants, and of what depends on shapes alone.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed: set[str] = set(stored) - {value.name for value in graph.input}
    names = [name for node in graph.node for name in node.output if name]
    for node in graph.node:
        if node.op_type in ("Shape", "Size", "Constant") or all(name in fixed for name in node.input if name):
            fixed.update(name for name in node.output if name)
    found = dict(zip(names, run(_exposed(model, names), feed), strict=True))
    shapes = {name: tuple(np.shape(value)) for name, value in {**feed, **found}.items()}
    types = {name: np.asarray(value).dtype for name, value in {**feed, **found}.items()}
    values = {name: np.asarray(found[name]) for name in names if name in fixed and np.size(found[name]) <= LARGEST}
    for name, tensor in stored.items():
        shapes[name] = tuple(tensor.dims)
        types[name] = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        if inline and int(np.prod(tensor.dims)) <= LARGEST and name in fixed:
            values[name] = numpy_helper.to_array(tensor)
    return Known(shapes, types, values)


def _exposed(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return the model with these tensors as its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy
