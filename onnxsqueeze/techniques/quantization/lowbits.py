"""Which weights get how many bits: the layers of a graph with what each number of bits does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.budget.spend import Option, spend
from onnxsqueeze.contract.plan import Skip
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.layers import Linear, describe
from onnxsqueeze.linear.weighted import STORED, weighted
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.shrinkage import shrunk
from onnxsqueeze.techniques.quantization.emit.weights import HELD, values_of
from onnxsqueeze.techniques.quantization.fewbits import Fit, Grid, block_of, fit, rows_of
from onnxsqueeze.techniques.quantization.layers import Layers, weight_slots

__all__ = ["BITS", "Weight", "chosen_bits", "plain_bits", "weights"]

BITS = (8, 6, 4, 3, 2)
"""Numbers of bits that a weight may have."""
GATHERED = (8, 4, 2)
"""Those of a table that is gathered before it is restored: rows are whole bytes then."""
DELICATE = 0.05
"""The first and the last layer get 8 bits where they are at most this share of all weights."""
FEW = 32
"""Layers whose outputs have fewer inputs, such as depthwise ones, get 8 bits."""


@dataclass
class Weight:
    """A weight of a node, seen as rows (N, K) of blocks that share a scale.

    ``rank`` is that of the indices that gather it, None where it is restored as a whole. ``moments`` are those of the
    input rows of a layer, if they were measured; ``biased`` layers take over the mean error in their bias, so that
    only the covariance counts. ``by_channel`` weights have one positive scale per row, as integer arithmetic needs it.
    """

    node: gs.Node
    slot: int
    shape: tuple[int, ...]
    rank: int | None = None
    moments: Moments | None = None
    biased: bool = False
    by_channel: bool = False
    _errors: dict[int, float] = field(default_factory=dict)
    _fits: dict[int, Fit] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name of the node's output."""
        return key_of(self.node)

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def transposed(self) -> bool:
        """Whether a Gemm reads it as (N, K)."""
        return bool(self.node.op == "Gemm" and self.node.attrs.get("transB", 0))

    @property
    def columns_first(self) -> bool:
        """Whether it lies in memory as (K, N)."""
        return self.node.op in ("MatMul", "Gemm") and self.slot == 1 and len(self.shape) == 2 and not self.transposed

    def rows(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return values of its shape as (N, K)."""
        matrix = self.slot == 1 and (self.node.op == "Conv" or len(self.shape) == 2)
        return rows_of(values, self.node.op if matrix else "", self.transposed)

    @property
    def block(self) -> int:
        """How many elements share a scale."""
        row = self.rows(np.broadcast_to(np.float32(0), self.shape)).shape[1]
        return row if self.by_channel else block_of(row)

    @property
    def second(self) -> NDArray[np.floating] | None:
        """The covariance of the input rows, or ``E[xxᵀ]`` where no bias takes over the mean error."""
        found = self.moments
        if found is None or found.gram is None:
            return None
        second = found.second - np.outer(found.mean, found.mean) if self.biased else found.second
        return shrunk(second, found.n)

    @property
    def bits(self) -> tuple[int, ...]:
        """The numbers of bits that it can have."""
        if self.rank is None:
            return BITS
        return tuple(b for b in GATHERED if self.block % (8 // b) == 0)

    def bytes(self, bits: int) -> int:
        """Return about how many bytes it takes with so many bits, scales included."""
        return self.size * bits // 8 + self.size // self.block * (4 if self.by_channel else 2)

    def fit(self, bits: int, values: NDArray[np.floating], keep: bool = False) -> Fit:
        """Return its integers and scales; ``keep`` them unless they are large."""
        if bits in self._fits:
            return self._fits[bits]
        loose = not self.by_channel
        found = fit(self.rows(values), Grid(bits), self.block, self.second, signs=loose, half=loose)
        if keep and self.size <= HELD:
            self._fits[bits] = found
        return found

    def error(self, bits: int) -> float:
        """Return the relative squared error of the layer's output, of the weight itself where nothing was measured."""
        if bits not in self._errors:
            values = values_of(self.node.inputs[self.slot])
            rows, second = np.asarray(self.rows(values), np.float32), self.second
            change = rows - self.fit(bits, values).weight
            if second is None:
                power, error = float(np.sum(rows**2, dtype=np.float64)), float(np.sum(change**2, dtype=np.float64))
            else:
                narrow = second.astype(np.float32)
                power, error = (float(np.sum((x @ narrow) * x, dtype=np.float64)) for x in (rows, change))
            self._errors[bits] = error / max(power, 1e-30)
        return self._errors[bits]

    def put(self, graph: Graph, key: str, bits: int) -> None:
        """Give the node that makes ``key``, a copy of its own, the weight as it is with so many bits."""
        node, _ = edit.find(graph, key)
        values = values_of(node.inputs[self.slot])
        rows = self.fit(bits, values, keep=True).weight
        restored = rows.T if self.columns_first else rows.reshape(self.shape)
        node.inputs[self.slot] = edit.constant(graph, f"{key}_weight", np.ascontiguousarray(restored))


def weights(view: View, stats: Statistics, wanted: Callable[[gs.Node], bool]) -> Iterator[list[Weight] | Skip]:
    """Yield per node the weights that can be stored in few bits, and why others are not; a shared one only once."""
    layers = Layers(view, wanted, share=0.0)
    owners: dict[int, str] = {}
    stored = {id(each.node): each.apart for each in weighted(view) if each.apart == STORED}
    for node in view.nodes:
        if id(node) in stored and wanted(node):
            yield Skip(key_of(node), STORED)
            continue
        slots = weight_slots(node) if wanted(node) else ()
        reasons = {slot: layers.refusal(node, slot) for slot in slots}
        free = [slot for slot, reason in reasons.items() if not reason]
        mine = [slot for slot in free if owners.setdefault(id(node.inputs[slot]), key_of(node)) == key_of(node)]
        mine = [slot for slot in mine if np.isfinite(values_of(node.inputs[slot])).all()]
        if mine:
            yield [_weight(view, stats, node, slot) for slot in mine]
        elif free:
            shared = owners[id(node.inputs[free[0]])]
            yield Skip(
                key_of(node),
                f"its weight is stored with that of '{shared}'"
                if shared != key_of(node)
                else "it holds NaN or infinity",
            )
        elif any(reasons.values()):
            yield Skip(key_of(node), next(reason for reason in reasons.values() if reason))


def _weight(view: View, stats: Statistics, node: gs.Node, slot: int) -> Weight:
    tensor = node.inputs[slot]
    shape = tuple(int(size) for size in tensor.shape)
    found = Weight(node, slot, shape)
    indices = view.shape(node.inputs[1]) if node.op == "Gather" else None
    alone = len(tensor.outputs) == 1 and len(shape) == 2 and is_standard(node)
    if indices is not None and alone and node.attrs.get("axis", 0) == 0:
        found.rank = len(indices)
    layer = describe(view, node) if slot == 1 else None
    if isinstance(layer, Linear) and not view.in_body(node):
        moments = stats.of(layer.gram)
        if moments is not None and moments.gram is not None and len(moments.total) == layer.columns:
            found.moments, found.biased = moments, node.op in ("Conv", "Gemm")
    return found


def plain_bits(found: Sequence[Sequence[Weight]], bits: int) -> list[int]:
    """Return ``bits`` for all but what is delicate: small first and last layers, and those of few inputs, get 8."""
    layers = [i for i, group in enumerate(found) if group[0].node.op in ("Conv", "Gemm", "MatMul")]
    total = sum(weight.size for group in found for weight in group)
    ends = {i for i in (layers[:1] + layers[-1:]) if sum(w.size for w in found[i]) <= DELICATE * total}

    def few(group: Sequence[Weight]) -> bool:
        return all(w.node.op == "Conv" and prod(w.shape[1:]) < FEW for w in group)

    return [_at_least(group, 8 if i in ends or few(group) else bits) for i, group in enumerate(found)]


def _at_least(group: Sequence[Weight], bits: int) -> int:
    return min(b for b in BITS if b >= bits and all(b in weight.bits for weight in group))


def chosen_bits(found: Sequence[Sequence[Weight]], least: int, size: float, gains: Mapping[str, float]) -> list[int]:
    """Return how many bits each group of weights gets, at least ``least``, within ``size`` bytes: the least error.

    A gain says what the error of a layer does to the answers.
    """
    options = []
    for group in found:
        able = [b for b in BITS if b >= least and all(b in weight.bits for weight in group)]
        gain = gains.get(group[0].key, 1.0)
        options.append([Option(sum(w.bytes(b) for w in group), gain * max(w.error(b) for w in group), b) for b in able])
    return [bits for option in spend(options, cost=size) if isinstance(bits := option.choice, int)]
