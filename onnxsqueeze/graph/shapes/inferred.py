"""Shapes of activations, as ONNX infers them for given inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.protos import prepare_inference

__all__ = ["Shape", "infer_shapes", "shape_of"]

Shape = tuple[int, ...]


def infer_shapes(
    graph: Graph, feed: Mapping[str, NDArray[np.generic]], known: Iterable[onnx.ValueInfoProto] = ()
) -> onnx.GraphProto:
    """Return the graph without weights, its shapes inferred from those of ``feed``, and from what else is ``known``."""
    model = encode(graph, skeleton=True)
    for value in model.graph.input:
        if value.name in feed and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=d) for d in feed[value.name].shape)
    # stale symbolic shapes of intermediates would stop inference from using the concrete ones
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    model.graph.value_info.extend(known)
    prepare_inference(model)
    with suppress(Exception):  # what cannot be inferred is not counted
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return model.graph


def shape_of(info: onnx.ValueInfoProto) -> Shape | None:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return None
    found = []
    for dim in kind.shape.dim:
        if not dim.HasField("dim_value"):
            return None
        found.append(dim.dim_value)
    return tuple(found)
