"""What the weight of a layer looks like: its spread, its zeros, its rank; a quantized one is looked at dequantized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.constants import stored
from onnxsqueeze.ir.weights import peek

__all__ = ["WeightStatistics", "bits_a_weight", "bits_in_blocks", "effective_rank", "statistics"]

RANK_LIMIT = 4096
"""The effective rank of a matrix whose smaller side is longer is not computed: it would take minutes."""


@dataclass(frozen=True)
class WeightStatistics:
    """The weight of a layer, dequantized if it is quantized; a channel is what makes one output of the layer.

    ``sparsity`` is the share of zeros, ``filter_sparsity`` of channels that are all zero, ``channel_sparsity`` of
    inputs that no channel reads. ``effective_rank`` is ``exp(H(σ/Σσ))`` of the (outputs, inputs) matrix.
    ``channel_range`` is the largest ``max|w|`` of a channel over the smallest that is not zero.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    mean: float
    std: float
    abs_mean: float
    sparsity: float
    filter_sparsity: float
    channel_sparsity: float
    effective_rank: float | None
    full_rank: int
    channel_range: float | None


def statistics(node: gs.Node) -> WeightStatistics | None:
    """Return the statistics of the first weight with two axes or more that the node reads."""
    if node.op == "DequantizeLinear":
        return None  # the layer that reads the result has it
    for tensor in node.inputs:
        constant, scale, zero, axis = stored(tensor)
        if constant is None or len(constant.shape) < 2 or np.dtype(constant.dtype).kind in "OVSU?":
            continue
        values = peek(constant)
        if scale is None and values.dtype.kind in "iu" and values.dtype.itemsize > 1:
            continue  # indices and shapes
        matrix = _as_matrix(node, _dequantized(values, scale, zero, axis))
        return WeightStatistics(
            name=str(constant.name), dtype=str(np.dtype(constant.dtype)), shape=tuple(map(int, constant.shape)),
            **_figures(matrix),
        )  # fmt: skip
    return None


def bits_a_weight(tensor: gs.Tensor, elements: int) -> float | None:
    """Return how many bits of the file an element of a weight takes that nodes restore from constants, scales included.

    None if the tensor is a constant itself, or depends on more than constants.
    """
    size = _bytes_behind(tensor.inputs) if elements else None
    return None if size is None else 8 * size / elements


def bits_in_blocks(node: gs.Node) -> float | None:
    """Return how many bits of the file an element of the weight of a MatMulNBits takes, with scales and zero points."""
    elements = int(node.attrs.get("K", 0)) * int(node.attrs.get("N", 0)) if node.op == "MatMulNBits" else 0
    held = [tensor for tensor in node.inputs[1:4] if tensor.name]
    constants = {id(t): t for t in held if isinstance(t, gs.Constant)}
    behind = _bytes_behind([t.inputs[0] for t in held if t.inputs])
    if not elements or (behind is None and len(constants) < len(held)):
        return None
    return 8 * (sum(int(t._values.nbytes) for t in constants.values()) + (behind or 0)) / elements


def _bytes_behind(nodes: Iterable[gs.Node]) -> int | None:
    """Return the bytes of the constants that nodes compute from, None if they depend on more than constants."""
    leaves: dict[int, gs.Constant] = {}
    seen: set[int] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for each in node.inputs:
            if isinstance(each, gs.Constant):
                leaves[id(each)] = each
            elif each.inputs:
                stack.extend(each.inputs)
            elif each.name:
                return None
    size = sum(int(c._values.nbytes) for c in leaves.values() if np.dtype(c.dtype) != np.int64)
    return size if leaves else None


def _figures(matrix: NDArray[np.float64]) -> dict[str, Any]:
    """Return the statistics of an (outputs, inputs) matrix."""
    if not matrix.size:
        return dict.fromkeys(("mean", "std", "abs_mean", "sparsity", "filter_sparsity", "channel_sparsity"), 0.0) | {
            "effective_rank": None, "full_rank": 0, "channel_range": None,
        }  # fmt: skip
    magnitude = np.abs(matrix)
    peaks = magnitude.max(axis=1)
    alive = peaks[peaks > 0]
    return {
        "mean": float(matrix.mean()),
        "std": float(matrix.std()),
        "abs_mean": float(magnitude.mean()),
        "sparsity": float((matrix == 0).mean()),
        "filter_sparsity": float((peaks == 0).mean()),
        "channel_sparsity": float((magnitude.max(axis=0) == 0).mean()),
        "effective_rank": effective_rank(matrix),
        "full_rank": int(min(matrix.shape)),
        "channel_range": float(alive.max() / alive.min()) if alive.size and isfinite(alive.max()) else None,
    }


def effective_rank(matrix: NDArray[np.float64]) -> float | None:
    """Return ``exp(H(p))`` with ``p = σ/Σσ``: how many directions matter; None if there are too many or no numbers."""
    if min(matrix.shape) > RANK_LIMIT or not np.isfinite(matrix).all():
        return None
    narrow = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(narrow @ narrow.T), 0))
    total = float(sigma.sum())
    if not total:
        return 0.0
    share = sigma[sigma > 1e-12 * sigma.max()] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _dequantized(
    values: NDArray[np.generic], scale: gs.Constant | None, zero: gs.Constant | None, axis: int
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.astype(np.float64)
    if scale is None:
        return found
    shape = [1] * found.ndim
    factor = peek(scale).astype(np.float64)
    if factor.size > 1:
        shape[axis] = -1
    offset = 0.0 if zero is None else peek(zero).astype(np.float64).reshape(shape)
    restored: NDArray[np.float64] = (found - offset) * factor.reshape(shape)
    return restored


def _as_matrix(node: gs.Node, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a weight as (outputs, inputs)."""
    if not values.size:
        return np.zeros((0, 0))
    if node.op in ("MatMul", "MatMulInteger") or (node.op == "Gemm" and not node.attrs.get("transB", 0)):
        return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    if node.op == "ConvTranspose":
        return np.ascontiguousarray(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1))
    if node.op in ("LSTM", "GRU", "RNN"):
        return values.reshape(-1, values.shape[-1])
    return values.reshape(values.shape[0], -1)
