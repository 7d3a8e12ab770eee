"""Weights of few bits that are multiplied in integers: restored as int8 when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.techniques.quantization.emit.lookup import integers_found
from onnxsqueeze.techniques.quantization.emit.nbits import decoded
from onnxsqueeze.techniques.quantization.emit.weights import FloatArray
from onnxsqueeze.techniques.quantization.fewbits import Grid, fit
from onnxsqueeze.techniques.quantization.whole import on_grid

__all__ = ["few_bits"]


def few_bits(
    graph: Graph,
    scope: Graph,
    hint: str,
    rows: FloatArray,
    bits: int,
    levels: int,
    second: FloatArray | None,
    floor: FloatArray | float,
    lay: Callable[[NDArray[np.generic]], NDArray[np.generic]],
    before: gs.Node,
) -> tuple[gs.Tensor, NDArray[np.int8], NDArray[np.float32]]:
    """Return the int8 tensor of a weight ``rows`` (N, K), its integers as ``lay`` lays them out, and scales (N, 1).

    The file holds integers of ``bits``, or indices of so many ``levels``. Errors cancel on inputs with S = ``second``.
    """
    if levels:
        found = on_grid(rows, levels, second, floor)
        indices = np.asarray(lay(found.indices), np.uint8)
        tensor = integers_found(graph, scope, hint, indices, found.levels, bits, before)
        return tensor, np.asarray(lay(found.integers), np.int8), found.scales
    few = fit(rows, Grid(bits), rows.shape[1], second, signs=False, compact=False, floor=floor)
    q = np.asarray(lay(few.q), np.int8)
    return decoded(graph, scope, hint, q, Grid(bits), onnx.TensorProto.INT8, before), q, few.scales
