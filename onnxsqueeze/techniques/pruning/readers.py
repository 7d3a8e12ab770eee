"""Layers that read prunable channels: their weights and inputs, and what they become without some of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.linear.bias import bias_tensor
from onnxsqueeze.linear.fitting import unsure
from onnxsqueeze.linear.layers import Linear, describe, matrix, regular
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.techniques.pruning.surgeon import compensate
from onnxsqueeze.techniques.pruning.units import Group, Slot

__all__ = ["WIDEST", "Indices", "Reader", "bias_of", "distrust", "read", "rows_of"]

Indices = NDArray[np.int64]
WIDEST = 4096
"""The Gram matrix of a wider layer would take over 128 MB; its columns are weighed by their norm."""


@dataclass
class Reader:
    """A layer that reads prunable channels: its weight (O, K), and the covariance and mean of its input rows.

    ``energy`` is the variance of its output and ``gain`` what a relative error of it does to the answers. Where rows
    are few, ``early`` are covariance and mean of three feeds in four.
    """

    key: str
    linear: Linear | None
    weight: Matrix
    spread: Matrix | None
    mean: Matrix | None
    energy: float
    gain: float = 1.0
    early: tuple[Matrix, Matrix] | None = None

    @property
    def trial(self) -> Reader:
        """The layer as the choice of units sees it: without the feeds that are kept apart, if rows are few."""
        return self if self.early is None else replace(self, spread=self.early[0], mean=self.early[1])

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
        seen = stats.of(linear.gram) if linear.columns <= WIDEST else None
        if seen is None or seen.gram is None or len(seen.total) != linear.columns:
            return Reader(key_of(node), linear, weight, None, None, max(float((weight**2).sum()), 1e-30))
        alone = bias_of(view, node) is None
        spread, mean = _about(seen, alone)
        energy = max(float(np.sum((weight @ spread) * weight)), 1e-30)
        reader = Reader(key_of(node), linear, weight, spread, mean, energy)
        parts = seen.parts()
        if parts is not None:
            reader.early = _about(parts[0], alone)
        return reader
    weight = rows_of(view, tensor, slot.axis).T
    return Reader(key_of(node), None, weight, None, None, max(float((weight**2).sum()), 1e-30))


def _about(moments: Moments, alone: bool) -> tuple[Matrix, Matrix]:
    """Return the covariance and the mean of the input rows; about 0 where no bias takes over."""
    spread, mean = regular(moments)
    return (spread + np.outer(mean, mean), np.zeros_like(mean)) if alone else (spread, mean)


def distrust(view: View, stats: Statistics, group: Group, nodes: Mapping[str, gs.Node]) -> str:
    """Return why no promise of an error can be kept for a group, if that is so."""
    read = [describe(view, nodes[slot.nodes[0]]) for slot in group.slots if slot.role == "consumer"]
    return next((reason for layer in read if isinstance(layer, Linear) and (reason := unsure(stats, layer))), "")


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
