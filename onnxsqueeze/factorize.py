"""Factoring many layers under one budget: what each could become, which of it to take, and how it enters the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze import budget, cost, factors, sensitivity, speed
from onnxsqueeze.bench import Bench
from onnxsqueeze.budget import Option
from onnxsqueeze.calibration import Statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Need, Pass, Site, Skip
from onnxsqueeze.factors import Candidate, Fitting
from onnxsqueeze.linear import Chain, Linear, Matrix, covariance, describe, matrix, rewrite
from onnxsqueeze.speed import Shape
from onnxsqueeze.view import View, key_of

__all__ = ["By", "Problem", "Units", "Work", "apply", "layers", "needs", "pose", "reconsider"]

By = Literal["macs", "params", "latency"]
FASTER = 0.9
"""A layer is rewritten only if its predicted time falls to at most this share."""
LARGEST = 4096
"""Wider layers are not measured: the Gram matrix would take over 128 MB."""
SMALLEST = 16
PROBE = 0.02
"""The relative error of a layer's output that measures its gain."""
TRIALS = 8
TRIAL_WORK = 2e11
"""Multiply-accumulates that measuring the gains may take."""

Find = Callable[[Fitting], Iterable[Candidate] | str]
"""The candidates of a layer, or why it has none."""
Outline = Callable[[Linear, str, Sequence[int]], Sequence[Shape]]
Built = tuple[Chain, list[list[Chain]], list[Matrix | None]]
"""The stages that layers share, the branches of each layer, and what their biases take over."""
Compose = Callable[[Fitting, Candidate], tuple[list[Chain], Matrix]]
"""The branches of a candidate, which are added up, and the weight that they amount to."""


def layers(view: View, only: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[gs.Node, Linear] | Skip]:
    """Yield the layers that could be factored, and why the others could not."""
    for node in view.of("Conv", "Gemm", "MatMul"):
        layer = describe(view, node)
        if layer is None:
            continue
        names = (key_of(node), str(node.name))
        if only and not any(fnmatchcase(name, pattern) for name in names for pattern in only):
            continue
        if any(fnmatchcase(name, pattern) for name in names for pattern in exclude):
            yield Skip(key_of(node), "it is excluded")
        elif isinstance(layer, str):
            yield Skip(key_of(node), layer)
        elif layer.outputs < SMALLEST or layer.columns < SMALLEST or layer.parameters < 1024:
            yield Skip(layer.key, f"its weight is only {layer.outputs}x{layer.columns}")
        elif layer.columns > LARGEST:
            yield Skip(layer.key, f"its {layer.columns} columns are over {LARGEST}: too many to measure")
        else:
            yield node, layer


def needs(view: View, only: Sequence[str], exclude: Sequence[str]) -> Iterator[Need]:
    """Yield a Gram matrix per input of a layer that could be factored."""
    for entry in layers(view, only, exclude):
        if not isinstance(entry, Skip) and not view.in_body(entry[0]):
            yield entry[1].gram


@dataclass(frozen=True)
class Joint:
    """Several layers that read the same input get one first factor of ``rank`` and a second factor each."""

    rank: int


@dataclass
class Unit:
    """What is decided together: one layer, or several that read the same input."""

    fittings: list[Fitting]
    found: list[list[Candidate]] = field(default_factory=list)


Units = list[Unit]


@dataclass
class Problem:
    """All layers of a plan with their candidates, and the budget they share."""

    units: Units
    outline: Outline
    compose: Compose
    by: By
    ratio: float | None
    max_error: float
    shares: bool = True
    gains: dict[str, float] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    built: dict[tuple[str, Candidate | Joint], Built] = field(default_factory=dict)

    def holds(self, key: str) -> bool:
        """Whether the layer takes part."""
        return any(f.layer.key == key for unit in self.units for f in unit.fittings)

    def gain(self, fitting: Fitting) -> float:
        """What the layer's relative error does to the answers; 1 where it was not measured."""
        return self.gains.get(fitting.layer.key, 1.0)

    def cost(self, layer: Linear, shapes: Sequence[Shape]) -> float:
        """The cost of operators in the place of a layer, by parameters, multiply-accumulates or predicted time."""
        if self.by == "params":
            return speed.parameters(shapes)
        positions = self.positions.get(layer.key)
        if self.by == "latency":
            return speed.work(shapes, positions)
        return speed.macs(shapes) * (positions or 1)

    def faster(self, layer: Linear, before: Sequence[Shape], after: Sequence[Shape]) -> bool:
        """Whether the operators are predicted to be faster than the layer, and smaller."""
        positions = self.positions.get(layer.key)
        limit = 1.0 if self.by == "params" else FASTER
        quick = speed.work(after, positions) <= limit * speed.work(before, positions)
        return quick and self.cost(layer, after) <= FASTER * self.cost(layer, before)

    def options(self, fitting: Fitting, found: Iterable[Candidate]) -> list[Option]:
        """Return what a layer may become, itself first."""
        layer, gain = fitting.layer, self.gain(fitting)
        itself = dense(layer)
        options = [Option(self.cost(layer, itself), 0.0, None)]
        for candidate in found:
            shapes = self.outline(layer, candidate.form, candidate.ranks)
            if self.faster(layer, itself, shapes):
                options.append(Option(self.cost(layer, shapes), gain * candidate.error, candidate))
        return options

    def unit_options(self, unit: Unit) -> list[Option]:
        """Return what a unit may become; a choice is a tuple of its layers' candidates, or a Joint."""
        single = [self.options(f, c) for f, c in zip(unit.fittings, unit.found, strict=True)]
        if len(single) == 1:
            return [replace(option, choice=(option.choice,)) for option in single[0]]
        options = budget.combined(single)
        if not self.shares:
            return options
        values = factors.channel(self.stacked(unit))[1]
        left = np.maximum(values.sum() - np.cumsum(values), 0.0)
        linear = [f.layer for f in unit.fittings]
        for rank in factors.ranks(len(values)):
            shapes = [Shape(rank, linear[0].columns), *(Shape(layer.outputs, rank) for layer in linear)]
            if self.faster(linear[0], [s for layer in linear for s in dense(layer)], shapes):
                options.append(Option(self.cost(linear[0], shapes), float(left[rank - 1]), Joint(rank)))
        return options

    def stacked(self, unit: Unit) -> Fitting:
        """Return the unit as one layer, its rows scaled so that squared output errors are errors of the answers."""
        rows = np.concatenate([f.weight * scale for f, scale in zip(unit.fittings, self.scales(unit), strict=True)])
        first = unit.fittings[0]
        return Fitting(replace(first.layer, outputs=len(rows)), rows, first.covariance, first.mean)

    def scales(self, unit: Unit) -> list[float]:
        """Return per layer the factor whose square turns squared output errors into errors of the answers."""
        energy = [max(float(np.trace(f.output_covariance())), 1e-30) for f in unit.fittings]
        return [float(np.sqrt(max(self.gain(f), 1e-9) / e)) for f, e in zip(unit.fittings, energy, strict=True)]

    def solve(self, max_error: float | None = None) -> list[Option]:
        """Return the choice for every unit within ``ratio``, or else within ``max_error`` (None: its own)."""
        options = [self.unit_options(unit) for unit in self.units]
        if self.ratio is not None:
            whole = sum(o[0].cost for o in options)
            return budget.spend(options, cost=self.ratio * whole)
        return budget.spend(options, error=self.max_error if max_error is None else max_error)

    def each(self, energy: float) -> Iterator[Site | Skip]:
        """Decide layer by layer: the cheapest that keeps ``energy`` of the variance; the closest if that is 0."""
        for unit in self.units:
            for fitting, found in zip(unit.fittings, unit.found, strict=True):
                pairs = [(o.cost, o.choice) for o in self.options(fitting, found)]
                close = [
                    (c, choice) for c, choice in pairs if isinstance(choice, Candidate) and choice.error <= 1 - energy
                ]
                if not close:
                    yield Skip(fitting.layer.key, "no factors with so little error are faster")
                    continue
                best = min(close, key=lambda pair: pair[0] if energy else pair[1].error)
                yield self.site(fitting, best[1])

    def entries(self, chosen: Sequence[Option]) -> Iterator[Site | Skip]:
        """Yield a site per rewritten layer or group of layers, and why the others stay."""
        for unit, option in zip(self.units, chosen, strict=True):
            if isinstance(option.choice, Joint):
                yield self._joint_site(unit, option.choice, option.error)
                continue
            assert isinstance(option.choice, tuple)
            for fitting, candidate in zip(unit.fittings, option.choice, strict=True):
                yield self.site(fitting, candidate)

    def site(self, fitting: Fitting, candidate: Candidate | None) -> Site | Skip:
        """Return the site of one layer, or why it stays as it is."""
        layer = fitting.layer
        if candidate is None:
            return Skip(layer.key, "the budget is better spent elsewhere, or no factors of it are faster")
        shapes = self.outline(layer, candidate.form, candidate.ranks)
        ranks = "x".join(map(str, candidate.ranks))
        share = speed.macs(shapes) / speed.macs(dense(layer))
        detail: dict[str, object] = {
            "form": candidate.form, "rows": layer.outputs, "columns": layer.columns, "rank": candidate.ranks[-1],
            "macs": round(share, 3),
        }  # fmt: skip
        if layer.key in self.gains:
            detail["gain"] = float(f"{self.gains[layer.key]:.3g}")
        kernel = "".join(f"x{k}" for k in layer.kernel)
        words = f"{layer.outputs}x{layer.channels}{kernel} to {candidate.form} rank {ranks}"
        return Site(layer.key, words, detail, candidate.error, work=Work(self, (fitting,), candidate))

    def _joint_site(self, unit: Unit, joint: Joint, error: float) -> Site:
        names = [f.layer.key for f in unit.fittings]
        rows = sum(f.layer.outputs for f in unit.fittings)
        columns = unit.fittings[0].layer.columns
        detail: dict[str, object] = {
            "form": "shared",
            "rows": rows,
            "columns": columns,
            "rank": joint.rank,
            "layers": names,
        }
        words = f"{len(names)} layers on one input share a first factor of rank {joint.rank}"
        weight = sum(self.gain(f) for f in unit.fittings)
        return Site(names[0], words, detail, error / max(weight, 1e-30), work=Work(self, tuple(unit.fittings), joint))

    def build(self, fittings: Sequence[Fitting], choice: Candidate | Joint) -> Built:
        """Return the shared stages, a chain per layer and what its bias takes over."""
        key = (fittings[0].layer.key, choice)
        if key not in self.built:
            self.built[key] = self._build(list(fittings), choice)
        return self.built[key]

    def _build(self, fittings: list[Fitting], choice: Candidate | Joint) -> Built:
        if isinstance(choice, Candidate):
            branches, weight = self.compose(fittings[0], choice)
            return (), [branches], [fittings[0].shift(weight)]
        unit = Unit(fittings)
        stacked, layer = self.stacked(unit), fittings[0].layer
        left, right = factors.balanced(*factors.channel(stacked), stacked.weight, choice.rank)
        shared = layer.stage(right.reshape(-1, layer.channels, *layer.kernel), range(len(layer.kernel)))
        chains: list[list[Chain]] = []
        shifts: list[Matrix | None] = []
        start = 0
        for fitting, scale in zip(fittings, self.scales(unit), strict=True):
            rows = left[start : start + fitting.layer.outputs] / scale
            start += fitting.layer.outputs
            chains.append([(fitting.layer.stage(rows),)])
            shifts.append(fitting.shift(rows @ right))
        return (shared,), chains, shifts


@dataclass(frozen=True)
class Work:
    """What a site carries: its problem, the layers it rewrites, and how."""

    problem: Problem
    fittings: tuple[Fitting, ...]
    choice: Candidate | Joint


def apply(site: Site, graph: Graph, label: str) -> None:
    """Rewrite the layer or layers of a site."""
    assert isinstance(site.work, Work)
    problem, fittings, choice = site.work.problem, site.work.fittings, site.work.choice
    shared, branches, shifts = problem.build(fittings, choice)
    rewrite(graph, [f.layer.key for f in fittings], shared, branches, shifts, label)


def dense(layer: Linear) -> tuple[Shape]:
    """Return the shape of the layer itself."""
    return (Shape(layer.outputs, layer.channels, prod(layer.kernel)),)


def pose(
    view: View, stats: Statistics, only: Sequence[str], exclude: Sequence[str], find: Find
) -> tuple[Units, list[Skip], dict[str, int]]:
    """Return the layers with their candidates, by the input they share, why others stay, and the output positions."""
    units: Units = []
    skips: list[Skip] = []
    positions: dict[str, int] = {}
    groups: dict[tuple[int, object], Unit] = {}
    for entry in layers(view, only, exclude):
        if isinstance(entry, Skip):
            skips.append(entry)
            continue
        node, layer = entry
        spread, mean = covariance(stats, layer)
        fitting = Fitting(layer, matrix(view, node), spread, mean)
        answer = find(fitting)
        found = [] if isinstance(answer, str) else list(answer)
        if not found:
            reason = answer if isinstance(answer, str) else "it answers nothing on the calibration feeds"
            skips.append(Skip(layer.key, reason))
            continue
        count = _positions(view, node, layer)
        if count is not None:
            positions[layer.key] = count
        same = (id(view.scope(node)), (layer.gram, layer.op))
        if same in groups:
            groups[same].fittings.append(fitting)
            groups[same].found.append(found)
        else:
            groups[same] = Unit([fitting], [found])
            units.append(groups[same])
    return units, skips, positions


def _positions(view: View, node: gs.Node, layer: Linear) -> int | None:
    shape = view.shape(node.outputs[0])
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return prod(int(d) for d in shape if isinstance(d, int)) // layer.outputs


def measure(problem: Problem, bench: Bench) -> None:
    """Measure the gain of every layer of the problem, and take the positions from a real feed."""
    counted = cost.macs(bench.original, bench.feeds[0])
    fittings = [f for unit in problem.units for f in unit.fittings]
    problem.positions = {
        f.layer.key: counted[f.layer.key] // f.layer.parameters for f in fittings if f.layer.key in counted
    }
    view = View(bench.original)
    nodes = {key_of(node): node for node in view.nodes}
    probes: dict[str, sensitivity.Probe] = {}
    axes: dict[str, int] = {}
    for fitting in fittings:
        node = nodes.get(fitting.layer.key)
        if node is None or view.in_body(node) or fitting.mean is None or np.dtype(node.inputs[1].dtype) != np.float32:
            continue
        probes[fitting.layer.key] = probe(fitting, bias(view, node))
        axes[fitting.layer.key] = 1 if fitting.layer.op == "Conv" else -1
    if not probes:
        return
    per_feed = max(sum(counted.values()), 1) * (1.3 * len(probes) + 1)
    trials = int(np.clip(TRIAL_WORK // per_feed, 1, min(TRIALS, len(bench.feeds))))
    problem.gains = sensitivity.gains(bench.original, probes, bench.feeds[:trials], axes)


def bias(view: View, node: gs.Node) -> Matrix | float:
    """Return the bias of a Conv or Gemm, 0 where there is none."""
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return 0.0
    value: Matrix = np.asarray(view.value(node.inputs[2]), np.float64).reshape(-1)
    return value


def probe(fitting: Fitting, offset: Matrix | float) -> sensitivity.Probe:
    """Return the perturbation that truncates the layer's output to the rank that leaves an error of about 2 %."""
    basis, values = factors.channel(fitting)
    total = max(float(values.sum()), 1e-30)
    left = 1 - np.cumsum(values) / total
    rank = int(np.argmax(left <= PROBE)) if left[-1] <= PROBE else len(values) - 1
    rank = min(rank, len(values) - 1)
    lost = basis[:, rank:]
    if len(values) < fitting.layer.outputs and rank == 0:
        lost = basis
    change = -lost @ lost.T
    mean = np.zeros(fitting.layer.outputs) if fitting.mean is None else fitting.weight @ fitting.mean + offset
    error = float(values[rank:].sum()) / total
    return change, -change @ mean, error


def reconsider(pass_: Pass, plan: list[Site | Skip], bench: Bench) -> list[Site | Skip]:
    """Solve the plan's problem again with measured gains, until the measured error keeps a budget of error too."""
    work = next(e.work for e in plan if isinstance(e, Site))
    assert isinstance(work, Work)
    problem = work.problem
    measure(problem, bench)
    kept: list[Site | Skip] = [e for e in plan if isinstance(e, Skip) and not problem.holds(e.key)]
    found = list(problem.entries(problem.solve()))
    limit, budget = problem.max_error, problem.max_error
    for _ in range(0 if problem.ratio is not None else 5):
        sites = [entry for entry in found if isinstance(entry, Site)]
        error = 10 ** (-bench.sqnr(bench.variant(pass_, sites)) / 10) if sites else 0.0
        if error <= budget:
            return kept + found
        limit *= 0.8 * budget / error if np.isfinite(error) else 0.1
        found = list(problem.entries(problem.solve(limit)))
    return kept + (found if problem.ratio is not None else list(problem.entries(problem.solve(0.0))))
