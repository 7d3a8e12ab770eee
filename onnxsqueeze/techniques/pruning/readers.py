"""Layers that read prunable channels: their weights and inputs, and what they become without some of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.linear.bias import bias_tensor
from onnxsqueeze.linear.layers import Linear, covariance, describe, matrix
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.techniques.pruning.surgeon import compensate
from onnxsqueeze.techniques.pruning.units import Slot

__all__ = ["WIDEST", "Indices", "Reader", "bias_of", "read", "rows_of", "unseen_error"]

Indices = NDArray[np.int64]
WIDEST = 4096
"""The Gram matrix of a wider layer would take over 128 MB; its columns are weighed by their norm."""


@dataclass
class Reader:
    """A layer that reads prunable channels: its weight (O, K), and the covariance and mean of its input rows.

    ``energy`` is the variance of its output and ``gain`` what a relative error of it does to the answers. ``rows`` says
    how many input rows were seen, ``unseen`` how much larger the error is on rows that were not.
    """

    key: str
    linear: Linear | None
    weight: Matrix
    spread: Matrix | None
    mean: Matrix | None
    energy: float
    gain: float = 1.0
    rows: int = 0
    unseen: float = 1.0

    def columns(self, slot: Slot) -> Indices:
        """Return the columns (units, k) that a group owns."""
        return self.columns_of(slot.indices.reshape(-1)).reshape(len(slot.indices), -1)

    def columns_of(self, indices: Indices) -> Indices:
        """Return the columns of these indices of the weight's axis."""
        taps = prod(self.linear.kernel) if self.linear is not None else 1
        return (indices[:, None] * taps + np.arange(taps)).reshape(-1)

    def without(self, gone: Indices) -> tuple[Matrix, float]:
        """Return the weight that takes over for the columns ``gone``, zero there, and its relative error."""
        kept = np.setdiff1d(np.arange(self.weight.shape[1]), gone)
        new = np.zeros_like(self.weight)
        if self.spread is None:
            new[:, kept] = self.weight[:, kept]
            return new, float((self.weight[:, gone] ** 2).sum()) / self.energy
        new[:, kept] = compensate(self.weight, self.spread, kept)
        change = self.weight - new
        return new, float(np.sum((change @ self.spread) * change)) / self.energy


def read(view: View, stats: Statistics, node: gs.Node, tensor: gs.Constant, slot: Slot) -> Reader:
    """Return the layer that reads a slot; what is no plain linear layer is weighed by the norms of its columns."""
    linear = describe(view, node)
    if isinstance(linear, Linear) and node.inputs[1] is tensor:
        weight = matrix(view, node)
        spread, mean, rows = _moments(view, stats, node, linear)
        energy = float(np.sum((weight @ spread) * weight) if spread is not None else (weight**2).sum())
        return Reader(key_of(node), linear, weight, spread, mean, max(energy, 1e-30), rows=rows)
    weight = rows_of(view, tensor, slot.axis).T
    return Reader(key_of(node), None, weight, None, None, max(float((weight**2).sum()), 1e-30))


def _moments(view: View, stats: Statistics, node: gs.Node, linear: Linear) -> tuple[Matrix | None, Matrix | None, int]:
    """Return the covariance and the mean of the input rows, and their number; about 0 where no bias takes over."""
    spread, mean = covariance(stats, linear) if linear.columns <= WIDEST else (None, None)
    seen = stats.of(linear.gram)
    if spread is None or mean is None or seen is None:
        return None, None, 0
    spread = _shrunk(spread, seen.n)
    if bias_of(view, node) is None:
        return spread + np.outer(mean, mean), np.zeros_like(mean), seen.n
    return spread, mean, seen.n


def unseen_error(
    view: View, node: gs.Node, reader: Reader, gone: Indices, halves: Sequence[Statistics]
) -> float | None:
    """Return the relative error without some columns on either half of the feeds, fitted to the other half."""
    assert reader.linear is not None
    moments = [_moments(view, half, node, reader.linear) for half in halves]
    errors: list[float] = []
    for (spread, mean, _), (other, shifted, _) in (moments, moments[::-1]):
        if spread is None or mean is None or other is None or shifted is None:
            return None
        new, _ = replace(reader, spread=spread).without(gone)
        change = reader.weight - new
        off = change @ (shifted - mean)
        signal = float(np.sum((reader.weight @ other) * reader.weight))
        errors.append(float(np.sum((change @ other) * change) + off @ off) / max(signal, 1e-30))
    return sum(errors) / len(errors)


def _shrunk(spread: Matrix, rows: int) -> Matrix:
    """Return the covariance drawn towards its diagonal by as much as the few rows make its other entries uncertain.

    The share is ``Σ Var(s_ij) / Σ s_ij²`` over i ≠ j (Ledoit and Wolf, 2004), with the variance of normal rows,
    ``Var(s_ij) = (s_ii s_jj + s_ij²)/n``.
    """
    variance = np.diag(spread)
    squares = float((spread**2).sum() - (variance**2).sum())
    products = float(variance.sum() ** 2 - (variance**2).sum())
    share = min((products + squares) / max(rows * squares, 1e-300), 1.0)
    return (1 - share) * spread + share * np.diag(variance)


def bias_of(view: View, node: gs.Node) -> gs.Constant | None:
    """Return the initializer with a number per output that this layer alone adds, that of a MatMul in the next Add."""
    tensor = bias_tensor(node)
    if node.op == "MatMul":
        reader = view.only_consumer(node.outputs[0])
        if reader is not None and reader.op == "Add":
            tensor = reader.inputs[1 if reader.inputs[0] is node.outputs[0] else 0]
    if tensor is None or view.constant(tensor) is None or len(tensor.outputs) > 1:
        return None
    outputs = node.inputs[1].shape[0 if node.op == "Conv" or node.attrs.get("transB", 0) else -1]
    return tensor if tuple(tensor.shape) == (outputs,) else None


def rows_of(view: View, tensor: gs.Constant, axis: int) -> Matrix:
    """Return the weight with one row per index of the axis."""
    value = np.moveaxis(np.asarray(view.value(tensor), np.float64), axis, 0)
    return value.reshape(len(value), -1)
