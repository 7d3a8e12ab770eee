"""What of a tensor an early answer is made of: means over parts of its space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph

__all__ = ["MOST", "pooled"]

MOST = 1024
"""Features of one tensor at most."""
GRID = 4
"""Parts that each spatial axis is cut into at most."""
CONVOLUTIONAL = ("Conv", "QLinearConv", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization")


def pooled(
    graph: Graph, tensor: gs.Tensor, shape: Sequence[int], most: int = MOST, fixed: bool = True
) -> tuple[gs.Tensor, int] | None:
    """Give the graph the features of a tensor, and return them as (N, F) with F; None if there can be none.

    ``shape`` is that of one run. A map (N, C, H, W) is averaged over the fields of a grid of up to 4 × 4, as far as
    that gives ``most`` features; over all of it if its size changes from feed to feed (not ``fixed``). A sequence
    (N, T, C) is averaged over T, and (N, C, L) of convolutions over L. Integers are turned to floats first.
    """
    channels, sequence = _layout(tensor, shape)
    if channels is None or channels > most or min(shape[1:], default=0) < 1:
        return None
    value, name = _float(graph, tensor), str(tensor.name)
    if len(shape) == 2:
        return value, channels
    if sequence:
        return _mean(graph, value, 1, name), channels
    grid = next(g for g in range(GRID, 0, -1) if g == 1 or (fixed and min(shape[2:]) >= g and channels * g * g <= most))
    if grid == 1 or len(shape) != 4:
        value, grid = edit.insert(graph, graph, "GlobalAveragePool", [value], f"{name}_mean"), 1
    else:
        kernel = [size // grid for size in shape[2:]]
        sides = [kernel[0] * grid, kernel[1] * grid]
        value = edit.insert(
            graph, graph, "AveragePool", [value], f"{name}_grid", {"kernel_shape": kernel, "strides": kernel}
        )
        if any((size - side) // k for size, side, k in zip(shape[2:], sides, kernel, strict=True)):
            value = _cropped(graph, value, grid, name)
    flat = edit.insert(graph, graph, "Flatten", [value], f"{name}_features", {"axis": 1})
    return flat, channels * grid ** (len(shape) - 2 if grid > 1 else 0)


def _layout(tensor: gs.Tensor, shape: Sequence[int]) -> tuple[int | None, bool]:
    """Return the number of channels, None if the tensor is no map, sequence or row, and whether it is a sequence."""
    around = [node.op for node in (*tensor.inputs, *tensor.outputs)]
    if len(shape) == 3 and not any(op in CONVOLUTIONAL for op in around):
        return shape[2], True
    return (shape[1], False) if 2 <= len(shape) <= 4 else (None, False)


def _float(graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op != "QuantizeLinear":
        return tensor
    return edit.insert(graph, graph, "DequantizeLinear", [tensor, *maker.inputs[1:]], f"{tensor.name}_float")


def _mean(graph: Graph, tensor: gs.Tensor, axis: int, name: str) -> gs.Tensor:
    if graph.opset < 18:
        return edit.insert(graph, graph, "ReduceMean", [tensor], f"{name}_features", {"axes": [axis], "keepdims": 0})
    axes = edit.constant(graph, f"{name}_axes", np.array([axis], np.int64))
    return edit.insert(graph, graph, "ReduceMean", [tensor, axes], f"{name}_features", {"keepdims": 0})


def _cropped(graph: Graph, tensor: gs.Tensor, grid: int, name: str) -> gs.Tensor:
    """Drop the fields beyond the grid, of which there is one where a side leaves a whole kernel over."""
    ends = [
        edit.constant(graph, f"{name}_{what}", np.array(values, np.int64))
        for what, values in (("starts", [0, 0]), ("ends", [grid, grid]), ("axes", [2, 3]))
    ]
    return edit.insert(graph, graph, "Slice", [tensor, *ends], f"{name}_fields")
