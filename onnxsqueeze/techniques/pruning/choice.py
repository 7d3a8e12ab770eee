"""The problem of pruning: groups of channels with the order in which they may go, and how many of each, all at once.

Every group has a curve of its loss over the units removed, every layer a cost that is the product of what is left of
its axes. The choice minimises ``Σ loss + μ·cost`` by coordinate descent, with the μ that meets the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal
from zlib import crc32

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.budget.spend import By
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.targets.times import Shape, Work
from onnxsqueeze.techniques.pruning.coupling import Coupling
from onnxsqueeze.techniques.pruning.readers import Indices, Reader, read, rows_of
from onnxsqueeze.techniques.pruning.surgeon import Inverses, Part, Sweep, sweep
from onnxsqueeze.techniques.pruning.units import Group, Slot

__all__ = ["Candidate", "Layer", "Removal", "Score", "pose"]

Score = Literal["obs", "l1", "l2", "random"]
ROUNDS = 4
CHEAPEST, DEAREST = 1e-9, 1e6
"""The prices of the whole cost, in relative errors of the answers, between which the choice lies."""
POINTS = 32
"""Points of a curve that a site carries, at most."""


@dataclass(frozen=True)
class Layer:
    """What an operator with a weight costs: ``dims`` are the axes of the weight, ``shrinks`` what groups take of them.

    ``shrinks`` holds (candidate, axis, elements per unit); ``outputs`` and ``inputs`` name the axes of the weight.
    """

    key: str
    dims: tuple[int, ...]
    outputs: int
    inputs: int
    depthwise: bool
    positions: int
    shrinks: tuple[tuple[int, int, int], ...] = ()


@dataclass
class Candidate:
    """A group that may be pruned, the layers that read it, the norms of its units and its curve.

    What is left is a multiple of ``step``.
    """

    group: Group
    readers: list[tuple[Reader, Slot]]
    norms: Matrix
    step: int
    curve: Sweep = field(default_factory=lambda: Sweep(np.zeros(0, np.int64), np.zeros(1)))
    scale: float = 1.0
    """What its curve was scaled by."""

    @property
    def least(self) -> int:
        """How many units stay at least."""
        return min(self.step, self.group.size)

    @property
    def choices(self) -> Indices:
        """How many units may be removed, ascending."""
        kept = np.arange(self.step, self.group.size, self.step)
        return np.concatenate([[0], self.group.size - kept[::-1]])

    @property
    def unknown(self) -> bool:
        """Whether a sweep must find the order: not where one has, and gains scale its curve alone."""
        return len(self.readers) > 1 or not len(self.curve.order)

    def gone(self, count: int) -> tuple[int, ...]:
        """Return the first units to go."""
        return tuple(sorted(self.curve.order[:count].tolist()))

    def drawn(self, chosen: int, label: str) -> dict[str, object]:
        """Return the loss by units removed, as reports draw it."""
        loss = self.curve.loss
        picked = np.unique(np.linspace(0, len(loss) - 1, POINTS).round().astype(int)).tolist()
        return {"x": picked, "y": [float(f"{loss[i]:.3g}") for i in picked], "chosen": chosen, "label": label}


@dataclass
class Removal:
    """All groups of a plan and what their layers cost."""

    coupling: Coupling
    candidates: list[Candidate]
    readers: dict[str, Reader]
    layers: list[Layer]
    score: Score
    by: By
    work: Work
    positions: dict[str, int] = field(default_factory=dict)
    """Where it was counted on a feed, at how many positions a layer is applied."""

    def left(self, removed: Mapping[int, int]) -> float:
        """Return the share of the cost that is left without so many units of the candidates of these numbers."""
        counts = [removed.get(i, 0) for i in range(len(self.candidates))]
        return self.cost(counts) / self.cost([0] * len(counts))

    def cost(self, removed: Sequence[int]) -> float:
        """Return the cost of all layers with so many units of each candidate removed."""
        return sum(self._cost(layer, self._dims(layer, removed)) for layer in self.layers)

    def _dims(self, layer: Layer, removed: Sequence[int]) -> list[int]:
        dims = list(layer.dims)
        for index, axis, per_unit in layer.shrinks:
            dims[axis] -= removed[index] * per_unit
        return dims

    def _cost(self, layer: Layer, dims: Sequence[int]) -> float:
        if self.by == "params":
            return float(prod(dims))
        positions = self.positions.get(layer.key, layer.positions)
        if self.by == "macs":
            return float(prod(dims) * positions)
        outputs, inputs = dims[layer.outputs], dims[layer.inputs]
        taps = prod(dims) // max(outputs * inputs, 1)
        return self.work.of([Shape(outputs, inputs, taps, depthwise=layer.depthwise)], positions)

    def solve(self, ratio: float | None, max_error: float) -> list[int]:
        """Return how many units of each candidate go: the least loss at ``ratio`` of the cost, or the least cost.

        A ratio that cannot be reached takes all that may go.
        """
        none = [0] * len(self.candidates)
        whole = max(self.cost(none), 1e-30)
        touched = self._touched()

        def enough(removed: Sequence[int]) -> bool:
            if ratio is not None:
                return self.cost(removed) <= ratio * whole
            return self.loss(removed) > max_error

        low, high = CHEAPEST, DEAREST
        below, above = none, self._at(high / whole, touched)
        while high / low > 1.01:
            price = float(np.sqrt(low * high))
            found = self._at(price / whole, touched)
            if enough(found):
                high, above = price, found
            else:
                low, below = price, found
        return below if ratio is None else self._spend_rest(above, ratio * whole)

    def _touched(self) -> list[list[Layer]]:
        touched: list[list[Layer]] = [[] for _ in self.candidates]
        for layer in self.layers:
            for index in sorted({index for index, _, _ in layer.shrinks}):
                touched[index].append(layer)
        return touched

    def _spend_rest(self, removed: list[int], target: float) -> list[int]:
        """Give units back while the budget allows it, those that save the most loss first."""
        removed = list(removed)
        while True:
            moves: list[tuple[float, int, int]] = []
            for i, candidate in enumerate(self.candidates):
                fewer = candidate.choices[candidate.choices < removed[i]]
                if len(fewer):
                    trial = [*removed[:i], int(fewer[-1]), *removed[i + 1 :]]
                    if self.cost(trial) <= target:
                        moves.append(
                            (float(candidate.curve.loss[removed[i]] - candidate.curve.loss[fewer[-1]]), -i, trial[i])
                        )
            if not moves:
                return removed
            _, i, count = max(moves)
            removed[-i] = count

    def loss(self, removed: Sequence[int]) -> float:
        """Return the predicted relative error of the answers."""
        return float(sum(c.curve.loss[n] for c, n in zip(self.candidates, removed, strict=True)))

    def _at(self, price: float, touched: Sequence[Sequence[Layer]]) -> list[int]:
        """Descend, a candidate at a time, to the least loss plus ``price`` times cost."""
        removed = [0] * len(self.candidates)
        for _ in range(ROUNDS):
            before = list(removed)
            for i, candidate in enumerate(self.candidates):
                choices = candidate.choices
                costs = np.zeros(len(choices))
                for n, choice in enumerate(choices):
                    removed[i] = int(choice)
                    costs[n] = sum(self._cost(layer, self._dims(layer, removed)) for layer in touched[i])
                removed[i] = int(choices[np.argmin(candidate.curve.loss[choices] + price * costs)])
            if removed == before:
                break
        return removed

    def rank(self) -> None:
        """Find the order and the curve of every candidate, with the gains of now."""
        inverses = Inverses(r.trial.spread for c in self.candidates if c.unknown for r, _ in c.readers)
        for candidate in self.candidates:
            candidate.curve = _curve(candidate, self.score, inverses)
            candidate.scale = sum(reader.gain / reader.energy for reader, _ in candidate.readers)


def pose(
    view: View, stats: Statistics, coupling: Coupling, chosen: Sequence[Group], *, score: Score, by: By, round_to: int
) -> Removal:
    """Return the problem of pruning the ``chosen`` groups; positions are those of shapes that the graph states."""
    nodes = {key_of(node): node for node in view.nodes}
    constants = {str(t.name): t for node in view.nodes for t in node.inputs if isinstance(t, gs.Constant)}
    readers: dict[str, Reader] = {}
    candidates: list[Candidate] = []
    for group in chosen:
        reads = []
        for slot in (s for s in group.slots if s.role == "consumer"):
            if slot.constant not in readers:
                readers[slot.constant] = read(view, stats, nodes[slot.nodes[0]], constants[slot.constant], slot)
            reads.append((readers[slot.constant], slot))
        made = [s for s in group.slots if s.role == "producer"]
        step = max(1, round_to // min((s.indices.shape[1] for s in made), default=1))
        norms = sum((_norms(view, constants[s.constant], s, score) for s in made), np.zeros(group.size))
        candidates.append(Candidate(group, reads, norms, step))
    problem = Removal(coupling, candidates, readers, list(_layers(view, chosen)), score, by, view.target.work)
    problem.rank()
    return problem


def _norms(view: View, tensor: gs.Constant, slot: Slot, score: Score) -> Matrix:
    """Return per unit the norm of what makes it, relative to the mean over the units."""
    rows = np.abs(rows_of(view, tensor, slot.axis))
    norm: Matrix = (rows if score == "l1" else rows**2).sum(1)[slot.indices].sum(1)
    return norm / max(float(norm.mean()), 1e-30)


def _curve(candidate: Candidate, score: Score, inverses: Inverses) -> Sweep:
    """Return the order in which the units go and the predicted relative error of the answers."""
    size, least = candidate.group.size, candidate.least
    if score == "obs":
        if not candidate.unknown:
            reader, _ = candidate.readers[0]
            return replace(candidate.curve, loss=candidate.curve.loss * (reader.gain / reader.energy / candidate.scale))
        parts = [Part(r.weight, r.trial.spread, r.columns(slot), r.gain / r.energy) for r, slot in candidate.readers]
        return sweep(parts, size, least, inverses)
    norms = candidate.norms
    if score == "random":
        norms = np.random.default_rng(crc32(candidate.group.name.encode())).uniform(1, 2, size)
    order = np.argsort(norms, kind="stable")
    loss = np.concatenate([[0.0], np.cumsum(norms[order])]) / max(float(norms.sum()), 1e-30)
    return Sweep(order[: size - least].astype(np.int64), loss[: size - least + 1])


def _layers(view: View, chosen: Sequence[Group]) -> Iterator[Layer]:
    """Yield every operator with a constant weight."""
    shrinks: dict[str, list[tuple[int, int, int]]] = {}
    for index, group in enumerate(chosen):
        for slot in group.slots:
            shrinks.setdefault(slot.constant, []).append((index, slot.axis, slot.indices.shape[1]))
    for node in view.of("Conv", "ConvTranspose", "Gemm", "MatMul"):
        weight = node.inputs[1]
        if not isinstance(weight, gs.Constant) or len(weight.shape) < 2:
            continue
        dims = tuple(int(d) for d in weight.shape)
        first = node.op == "Conv" or (node.op == "Gemm" and bool(node.attrs.get("transB", 0)))
        outputs, inputs = (0, 1) if first else (len(dims) - 1, len(dims) - 2) if node.op == "MatMul" else (1, 0)
        depthwise = node.op == "Conv" and dims[1] == 1 and int(node.attrs.get("group", 1)) > 1
        positions = _positions(view, node, dims[outputs])
        yield Layer(key_of(node), dims, outputs, inputs, depthwise, positions, tuple(shrinks.get(str(weight.name), ())))


def _positions(view: View, node: gs.Node, outputs: int) -> int:
    """Return at how many positions the weight is applied; an axis of unknown length, such as the batch, counts once."""
    shape = view.shape(node.outputs[0]) or ()
    return max(prod(d for d in shape if isinstance(d, int)) // outputs, 1)
