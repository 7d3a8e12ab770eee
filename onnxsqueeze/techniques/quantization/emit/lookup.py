"""Indices of levels in a file, and the nodes that restore weights from them when ONNX Runtime loads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.techniques.quantization.emit.nbits import decoded
from onnxsqueeze.techniques.quantization.fewbits import Grid
from onnxsqueeze.techniques.quantization.palette import Palette

__all__ = ["integers_found", "looked_up"]


def looked_up(
    graph: Graph, scope: Graph, tensor: gs.Constant, found: Palette, bits: int, shape: tuple[int, ...], flipped: bool
) -> None:
    """Put levels, looked up by indices of ``bits`` a weight at load time, in the place of a weight for all readers.

    ``flipped``: the weight lies as (K, N), else as ``shape`` = (N, …). An index is written in two's complement, and
    Gather takes −1 for the last level: integers of few bits are decoded as they always are.
    """
    home = edit.home(graph, scope, tensor)
    first, hint = home.nodes[0], str(tensor.name)
    bits *= found.width
    table = found.levels[None] if found.width == 2 else found.levels[..., None]  # groups, levels, width
    groups, count, _ = table.shape
    size, signed = 1 << bits, _signed(found.indices, bits)
    table = np.concatenate([table, np.repeat(table[:, -1:], size - count, axis=1)], axis=1)
    alone = groups == 1 and found.width == 1
    laid = signed.reshape(groups, -1) if groups > 1 else signed if not alone else signed.T if flipped else signed
    laid = laid.reshape(shape) if alone and not flipped else laid
    x = decoded(graph, home, hint, np.ascontiguousarray(laid), Grid(bits), onnx.TensorProto.INT32, first)
    levels = edit.constant(
        graph, f"{hint}_levels", table.reshape(-1) if alone else np.squeeze(table, 0 if groups == 1 else 2)
    )
    if groups == 1:
        x = edit.insert(graph, home, "Gather", [levels, x], f"{hint}_found", before=first)
    else:
        x = edit.insert(graph, home, "GatherElements", [levels, x], f"{hint}_found", {"axis": 1}, before=first)
    if not alone:
        rows = (len(signed), signed[0].size * found.width)
        size_of = edit.constant(graph, f"{hint}_shape", np.array(rows if flipped else shape, np.int64))
        x = edit.insert(graph, home, "Reshape", [x, size_of], f"{hint}_rows", before=first)
        if flipped:
            x = edit.insert(graph, home, "Transpose", [x], f"{hint}_restored", {"perm": [1, 0]}, before=first)
    edit.redirect(tensor, x)


def integers_found(
    graph: Graph,
    home: Graph,
    hint: str,
    indices: NDArray[np.uint8],
    levels: NDArray[np.int8],
    bits: int,
    first: gs.Node,
) -> gs.Tensor:
    """Return the int8 levels that indices of ``bits``, laid out as the weight, stand for; made at load time."""
    x = decoded(graph, home, hint, _signed(indices, bits), Grid(bits), onnx.TensorProto.INT32, first)
    table = np.concatenate([levels, np.repeat(levels[-1:], (1 << bits) - len(levels))])
    held = edit.constant(graph, f"{hint}_levels", table)
    return edit.insert(graph, home, "Gather", [held, x], f"{hint}_found", before=first)


def _signed(indices: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Return indices as integers of ``bits`` in two's complement."""
    size = 1 << bits
    return np.where(indices < size // 2, indices, indices.astype(np.int16) - size).astype(np.int8)
