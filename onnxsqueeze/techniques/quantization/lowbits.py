"""Which weights get how many bits: the layers of a graph with what each number of bits does to them."""

from __future__ import annotations

import sys
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
from onnxsqueeze.techniques.quantization.emit.rows import DEQUANTIZED, fuses
from onnxsqueeze.techniques.quantization.emit.weights import HELD, values_of
from onnxsqueeze.techniques.quantization.fewbits import LEVELS, Fit, Grid, block_of, fit, product_block, rows_of
from onnxsqueeze.techniques.quantization.layers import Layers, weight_slots

__all__ = ["BITS", "Weight", "chosen_bits", "heads", "plain_bits", "rows_a_run", "weights"]

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

    ``rank`` is that of the indices that gather it, None where it is restored as a whole; ``heads`` are the keys of the
    layers that multiply by the same table. A ``product`` multiplies few rows at a time by a weight that stays in so few
    bits, if there are any; ``fused`` says whether it is with a DequantizeLinear in front of it, too. ``moments`` are
    those of the input rows of a layer, if they were measured; ``biased`` layers take over the mean error in their bias,
    so that only the covariance counts. ``by_channel`` weights have one positive scale per row, as integer arithmetic
    needs it.
    """

    node: gs.Node
    slot: int
    shape: tuple[int, ...]
    rank: int | None = None
    moments: Moments | None = None
    biased: bool = False
    by_channel: bool = False
    heads: tuple[str, ...] = ()
    product: tuple[int, ...] = ()
    fused: bool = False
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
        return row if self.by_channel else product_block(row) if self.product else block_of(row)

    @property
    def few(self) -> bool:
        """Whether it stays in few bits in memory, multiplied or gathered as it is."""
        return (bool(self.product) and not self.by_channel) or self.rank is not None

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
        able = BITS if self.by_channel or not self.product else self.product
        return able if self.rank is None else tuple(b for b in GATHERED if b in able and self.block % (8 // b) == 0)

    def bytes(self, bits: int) -> int:
        """Return about how many bytes it takes with so many bits, scales included."""
        row = self.size // max(len(self.rows(np.broadcast_to(np.float32(0), self.shape))), 1)
        levels = not self.by_channel and row // self.block >= LEVELS
        scales = self.size // self.block * (1 if levels else 4 if self.by_channel else 2)
        return self.size * bits // 8 + scales + (4 * self.size // row if levels else 0)

    def fit(self, bits: int, values: NDArray[np.floating], keep: bool = False) -> Fit:
        """Return its integers and scales; ``keep`` them unless they are large."""
        if bits in self._fits:
            return self._fits[bits]
        loose = not self.by_channel
        found = fit(self.rows(values), Grid(bits), self.block, self.second, signs=loose, compact=loose)
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
        values = values_of(self.node.inputs[self.slot])
        rows = self.fit(bits, values, keep=True).weight
        restored = rows.T if self.columns_first else rows.reshape(self.shape)
        slot = self.slot
        if key in self.heads:
            restored, slot = (restored.T if node.op == "MatMul" else restored), 1
        node.inputs[slot] = edit.constant(graph, f"{key}_weight", np.ascontiguousarray(restored))


def weights(
    view: View, stats: Statistics, wanted: Callable[[gs.Node], bool], bits: int = 0, rows: int = 0
) -> Iterator[list[Weight] | Skip]:
    """Yield per node the weights that can be stored in few bits, and why others are not; a shared one only once.

    Those that multiply few rows at a time stay in few bits if they may have ``bits`` then, 0: none does; ``rows`` says
    how many they multiply where the graph does not, 0: as many as were measured.
    """
    tables = {key: key_of(node) for node in view.of("Gather") for key in map(key_of, heads(view, node) or ())}
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
            yield [_weight(view, stats, node, slot, bits, rows) for slot in mine]
        elif free:
            shared = owners[id(node.inputs[free[0]])]
            yield Skip(
                key_of(node),
                f"its weight is stored with that of '{shared}'"
                if shared != key_of(node)
                else "it holds NaN or infinity",
            )
        elif key_of(node) in tables:
            yield Skip(key_of(node), f"its weight is stored with that of '{tables[key_of(node)]}'")
        elif any(reasons.values()):
            yield Skip(key_of(node), next(reason for reason in reasons.values() if reason))


def _weight(view: View, stats: Statistics, node: gs.Node, slot: int, bits: int, rows: int) -> Weight:
    tensor = node.inputs[slot]
    shape = tuple(int(size) for size in tensor.shape)
    found = Weight(node, slot, shape)
    indices = view.shape(node.inputs[1]) if node.op == "Gather" else None
    layers = heads(view, node) if indices is not None and len(shape) == 2 else None
    layer = describe(view, node) if slot == 1 else None
    if layers:
        layer = describe(view, layers[0], shared=True)
    if isinstance(layer, Linear) and not view.in_body(node):
        moments = stats.of(layer.gram)
        if moments is not None and moments.gram is not None and len(moments.total) == layer.columns:
            found.moments, found.biased = moments, node.op in ("Conv", "Gemm")
    products = layers or ([node] if isinstance(layer, Linear) and len(tensor.outputs) == 1 else [])
    count = max((rows_a_run(view, each, found.moments, rows) or sys.maxsize for each in products), default=sys.maxsize)
    able = [_in_few(view, each, found.size, shape[1] if layers else shape[-1 if found.transposed else 0], count)
            for each in products]  # fmt: skip
    few = tuple(b for b in BITS if able and all(b in each for each in able))
    found.product = few if bits in few else ()
    found.fused = bool(found.product) and fuses(view, node)
    if indices is not None and layers is not None and (not layers or found.product):
        found.rank, found.heads = len(indices), tuple(map(key_of, layers))
    return found


def heads(view: View, node: gs.Node) -> list[gs.Node] | None:
    """Return the layers that multiply by the table that a Gather reads rows of, transposed; None if others read it."""
    if not is_standard(node) or node.attrs.get("axis", 0) or not isinstance(node.inputs[0], gs.Constant):
        return None
    table, found = node.inputs[0], []
    for reader in table.outputs:
        if reader is node:
            continue
        turned = reader.op == "Transpose" and list(reader.attrs.get("perm") or (1, 0)) == [1, 0]
        layers = reader.outputs[0].outputs if turned else [reader]
        tensor = reader.outputs[0] if turned else table
        for layer in layers:
            across = turned == (not layer.attrs.get("transB", 0))
            if layer.op not in ("MatMul", "Gemm") or not is_standard(layer) or not across:
                return None
            if layer.inputs[1] is not tensor or layer.inputs[0] is tensor or view.is_output(tensor):
                return None
        found += list(layers)
    return found


def rows_a_run(view: View, node: gs.Node, moments: Moments | None, told: int) -> int | None:
    """Return how many rows a layer multiplies in a run: by its shape, else as told, else as measured."""
    shape = view.shape(node.inputs[0])
    axes = None if shape is None else shape[:-1]
    if axes is not None and all(isinstance(size, int) for size in axes):
        return prod(size for size in axes if isinstance(size, int))
    if told:
        return told
    return None if moments is None else -(-moments.n // max(moments.runs, 1))


def _in_few(view: View, node: gs.Node, size: int, row: int, count: int) -> list[int]:
    """Return the numbers of bits in which a layer of ``count`` rows multiplies by a weight as it lies in memory."""
    target, rules = view.target, view.target.decoding
    if node.op not in ("MatMul", "Gemm") or rules.form == "none" or size < rules.least:
        return []
    if product_block(row) not in target.weights.blocks or node.attrs.get("transA", 0):
        return []
    found = [b for b in BITS if rules.rows.get(str(b), 0) >= count]
    if target.graph.contrib:
        return found
    return [b for b in found if rules.form == "dequantize" and b in DEQUANTIZED and fuses(view, node)]


def plain_bits(found: Sequence[Sequence[Weight]], bits: int) -> list[int]:
    """Return ``bits`` for all but what is delicate, which gets 8.

    That are small first and last layers, those of few inputs, and tables that are also the weight of a layer.
    """
    layers = [i for i, group in enumerate(found) if group[0].node.op in ("Conv", "Gemm", "MatMul")]
    total = sum(weight.size for group in found for weight in group)
    ends = {i for i in (layers[:1] + layers[-1:]) if sum(w.size for w in found[i]) <= DELICATE * total}

    def few(group: Sequence[Weight]) -> bool:
        return all(w.node.op == "Conv" and prod(w.shape[1:]) < FEW for w in group)

    eight = {i for i, group in enumerate(found) if i in ends or few(group) or any(w.heads for w in group)}
    return [_at_least(group, 8 if i in eight else bits) for i, group in enumerate(found)]


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
