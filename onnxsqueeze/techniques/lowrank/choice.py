"""The problem of factoring: what each layer may become, what that costs, and the choice for all layers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.budget.spend import By, Option, combined, frontier, settled, spend
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.linear.chains import Chain
from onnxsqueeze.linear.fitting import Fitting
from onnxsqueeze.linear.layers import Linear
from onnxsqueeze.targets.times import Shape, Work, macs, parameters
from onnxsqueeze.techniques.lowrank import forms
from onnxsqueeze.techniques.lowrank.forms import Candidate
from onnxsqueeze.techniques.lowrank.unseen import judged

__all__ = ["Built", "Compose", "Factored", "Factoring", "Joint", "Outline", "Unit", "dense"]

POINTS = 32
"""Points of the curve that a site carries, at most."""
FASTER = 0.9
"""A layer is rewritten only if its predicted time falls to at most this share."""
Outline = Callable[[Linear, str, Sequence[int]], Sequence[Shape]]
Built = tuple[Chain, list[list[Chain]], list[Matrix | None]]
"""The stages that layers share, the branches of each layer, and what their biases take over."""
Compose = Callable[[Fitting, Candidate], tuple[list[Chain], Matrix]]
"""The branches of a candidate, which are added up, and the weight that they amount to."""


@dataclass(frozen=True)
class Joint:
    """Several layers that read the same input get one first factor of ``rank`` and a second factor each."""

    rank: int


@dataclass
class Unit:
    """What is decided together: one layer, or several that read the same input."""

    fittings: list[Fitting]
    found: list[list[Candidate]] = field(default_factory=list)


@dataclass
class Factoring:
    """All layers of a plan with their candidates, and the budget they share."""

    units: list[Unit]
    outline: Outline
    compose: Compose
    work: Work
    by: By
    ratio: float | None
    max_error: float
    shares: bool = True
    gains: dict[str, float] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    built: dict[tuple[str, Candidate | Joint], Built] = field(default_factory=dict)
    _options: tuple[dict[str, float], dict[str, int], list[list[Option]]] | None = None
    """What the units may become, with these gains and positions."""

    def holds(self, key: str) -> bool:
        """Whether the layer takes part."""
        return any(f.layer.key == key for unit in self.units for f in unit.fittings)

    def gain(self, fitting: Fitting) -> float:
        """What the layer's relative error does to the answers; 1 where it was not measured."""
        return self.gains.get(fitting.layer.key, 1.0)

    def cost(self, layer: Linear, shapes: Sequence[Shape]) -> float:
        """The cost of operators in the place of a layer, by parameters, multiply-accumulates or predicted time."""
        if self.by == "params":
            return parameters(shapes)
        positions = self.positions.get(layer.key)
        if self.by == "latency":
            return self.work.of(shapes, positions)
        return macs(shapes) * (positions or 1)

    def faster(self, layer: Linear, before: Sequence[Shape], after: Sequence[Shape]) -> bool:
        """Whether the operators are predicted to be faster than the layer, and smaller."""
        positions = self.positions.get(layer.key)
        limit = 1.0 if self.by == "params" else FASTER
        quick = self.work.of(after, positions) <= limit * self.work.of(before, positions)
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
        options = combined(single)
        if not self.shares:
            return options
        stacked = self.stacked(unit)
        values = forms.channel(stacked)[1]
        total = max(float(values.sum()), 1e-30)
        left = np.maximum(total - np.cumsum(values), 0.0) / total
        found = [Candidate("channel", (rank,), float(left[rank - 1])) for rank in forms.ranks(len(values))]
        linear = [f.layer for f in unit.fittings]
        for candidate in judged(stacked, found, forms.compose):
            (rank,) = candidate.ranks
            shapes = [Shape(rank, linear[0].columns), *(Shape(layer.outputs, rank) for layer in linear)]
            if self.faster(linear[0], [s for layer in linear for s in dense(layer)], shapes):
                options.append(Option(self.cost(linear[0], shapes), total * candidate.error, Joint(rank)))
        return options

    def stacked(self, unit: Unit) -> Fitting:
        """Return the unit as one layer, its rows scaled so that squared output errors are errors of the answers."""
        rows = np.concatenate([f.weight * scale for f, scale in zip(unit.fittings, self.scales(unit), strict=True)])
        layer = replace(unit.fittings[0].layer, outputs=len(rows))
        first = unit.fittings[0]
        return Fitting(layer, rows, first.covariance, first.mean, first.rows)

    def scales(self, unit: Unit) -> list[float]:
        """Return per layer the factor whose square turns squared output errors into errors of the answers."""
        energy = [max(f.energy, 1e-30) for f in unit.fittings]
        return [float(np.sqrt(max(self.gain(f), 1e-9) / e)) for f, e in zip(unit.fittings, energy, strict=True)]

    @property
    def whole(self) -> float:
        """The cost of all layers as they came."""
        return sum(self.cost(f.layer, dense(f.layer)) for unit in self.units for f in unit.fittings)

    def solve(self, max_error: float | None = None) -> list[Option]:
        """Return the choice for every unit within ``ratio``, or else within ``max_error`` (None: its own)."""
        if self._options is None or self._options[0] is not self.gains or self._options[1] is not self.positions:
            self._options = self.gains, self.positions, [self.unit_options(unit) for unit in self.units]
        options = self._options[2]
        if self.ratio is not None:
            return spend(options, cost=self.ratio * self.whole)
        return spend(options, error=self.max_error if max_error is None else max_error)

    def each(self, energy: float) -> Iterator[Site[Factored] | Skip]:
        """Decide layer by layer: the cheapest that keeps ``energy`` of the variance; the closest if that is 0."""
        for unit in self.units:
            for fitting, found in zip(unit.fittings, unit.found, strict=True):
                pairs = [(o.cost, o.choice) for o in self.options(fitting, found)]
                close = [
                    (cost, choice) for cost, choice in pairs
                    if isinstance(choice, Candidate) and settled(choice.error) <= settled(1 - energy)
                ]  # fmt: skip
                if not close:
                    yield Skip(fitting.layer.key, "no factors with so little error are faster")
                    continue
                best = min(close, key=lambda pair: (0.0 if energy else settled(pair[1].error), pair[0]))
                yield self.site(fitting, best[1], found)

    def entries(self, chosen: Sequence[Option]) -> Iterator[Site[Factored] | Skip]:
        """Yield a site per rewritten layer or group of layers, and why the others stay."""
        for unit, option in zip(self.units, chosen, strict=True):
            if isinstance(option.choice, Joint):
                yield self._joint_site(unit, option.choice, option.error)
                continue
            assert isinstance(option.choice, tuple)
            for fitting, found, candidate in zip(unit.fittings, unit.found, option.choice, strict=True):
                yield self.site(fitting, candidate, found)

    def site(self, fitting: Fitting, candidate: Candidate | None, found: Iterable[Candidate]) -> Site[Factored] | Skip:
        """Return the site of one layer out of all that was ``found`` for it, or why it stays as it is."""
        layer = fitting.layer
        if candidate is None:
            return Skip(layer.key, "the budget is better spent elsewhere, or no factors of it are faster")
        ranks = "x".join(map(str, candidate.ranks))
        share = self._share(layer, candidate)
        detail: dict[str, object] = {
            "form": candidate.form, "rows": layer.outputs, "columns": layer.columns, "rank": candidate.ranks[-1],
            "macs": round(share, 3),
        }  # fmt: skip
        if layer.also:
            detail["layers"] = list(layer.keys)
        if layer.key in self.gains:
            detail["gain"] = float(f"{self.gains[layer.key]:.3g}")
        points = [p for p in frontier(Option(self._share(layer, c), c.error) for c in found) if p.cost < 1][::-1]
        if len(points) > 2:
            picked = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int))]
            detail["curve"] = {
                "x": [round(point.cost, 3) for point in picked],
                "y": [float(f"{point.error:.3g}") for point in picked],
                "chosen": round(share, 3),
                "label": "of the MACs",
            }
        kernel = "".join(f"x{k}" for k in layer.kernel)
        words = f"{layer.outputs}x{layer.channels}{kernel} to {candidate.form} rank {ranks}"
        return Site(layer.key, words, detail, candidate.error, work=Factored(self, (fitting,), candidate))

    def _share(self, layer: Linear, candidate: Candidate) -> float:
        """Return what is left of the layer's multiply-accumulates."""
        return macs(self.outline(layer, candidate.form, candidate.ranks)) / macs(dense(layer))

    def _joint_site(self, unit: Unit, joint: Joint, error: float) -> Site[Factored]:
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
        return Site(
            names[0], words, detail, error / max(weight, 1e-30), work=Factored(self, tuple(unit.fittings), joint)
        )

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
        left, right = forms.balanced(*forms.channel(stacked), stacked.weight, choice.rank)
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
class Factored:
    """What a site carries: its problem, the layers it rewrites, and how."""

    problem: Factoring
    fittings: tuple[Fitting, ...]
    choice: Candidate | Joint

    def early(self, problem: Factoring) -> Factored:
        """Return the same in another problem, fitted without the feeds that are kept apart where rows are few."""
        return Factored(problem, tuple(f.early or f for f in self.fittings), self.choice)


def dense(layer: Linear) -> tuple[Shape]:
    """Return the shape of the layer itself."""
    return (Shape(layer.outputs, layer.channels, prod(layer.kernel)),)
