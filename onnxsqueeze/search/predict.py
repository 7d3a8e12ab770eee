"""What a pipeline is predicted to cost and to lose before it is tried, from what has been measured so far.

A form of structure has a curve over its ratio, a form of numbers one point, and both together are composed: errors add
in power, times and bytes of weights multiply. The curves start as priors that follow ``((1/r − 1)·1.5)^2.2`` in error
and powers of r in cost; every try shifts them, in logarithms, by what was measured, linearly between two ratios. What
pairs do besides is a correction for each form of numbers behind each form of structure: the mean of what was seen,
shrunk to none where little was.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxsqueeze.report.search import Figures
from onnxsqueeze.search.space import NUMBERS, Candidate

__all__ = ["Predictor"]

AXES = ("size", "latency", "error", "packed")
MID = 2e-3
"""The error of a structure that leaves 60 % of the cost of its layers."""
STEEP = 2.2
POWERS = {"size": 0.6, "latency": 0.85, "packed": 0.6}
"""What is left of a model where r of its multiply-accumulates are left, as a power of r."""
BY_PARAMS = {"size": 0.95, "latency": 0.5, "packed": 0.95}
FLOOR = 1e-12
UNSEEN = {"size": 0.3, "latency": 0.3, "error": 1.2, "packed": 0.3}
"""Standard deviation of a prediction for a form that was never tried, in nats."""
SEEN = {"size": 0.03, "latency": 0.05, "error": 0.25, "packed": 0.05}
"""The same where both forms were tried, near by."""


@dataclass
class Predictor:
    """Predictions for candidates, which learn from ``told``."""

    graph: float = 0.0
    """The share of the file that is no weights."""
    known: dict[Candidate, Figures] = field(default_factory=dict)
    _memory: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False)
    """What was computed since the last try."""

    def told(self, candidate: Candidate, found: Figures) -> None:
        """Learn what a candidate turned out to be."""
        self.known[candidate] = found
        self._memory.clear()

    def drop(self, error: float) -> float:
        """Return what is lost at an error, as tries have shown; the error itself where there is no score."""
        if ("drops",) not in self._memory:
            seen = sorted((max(each.error, FLOOR), each.drop) for each in self.known.values())
            lost = np.maximum.accumulate(np.array([drop for _, drop in seen]))
            scored = any(each.drop != each.error for each in self.known.values())
            self._memory["drops",] = ([math.log(e) for e, _ in seen], lost) if scored else None
        drops = self._memory["drops",]
        return error if drops is None else float(np.interp(math.log(max(error, FLOOR)), *drops))

    def __call__(self, candidate: Candidate) -> Figures:
        """Return what a candidate is predicted to be."""
        if candidate in self.known:
            return self.known[candidate]
        value = {axis: self._value(candidate, axis) for axis in AXES}
        error = value["error"]
        return Figures(value["size"], value["latency"], error, self.drop(error), value["packed"])

    def spread(self, candidate: Candidate) -> dict[str, float]:
        """Return the standard deviations of a prediction, in nats by axis."""
        key = "near", candidate.structure, candidate.numbers
        if key not in self._memory:
            alike = [each for each in self.known if each.structure == candidate.structure]
            near = [math.log(each.ratio) for each in alike if each.numbers in ("float", candidate.numbers)]
            self._memory[key] = not candidate.structure or any(each.numbers == "float" for each in alike), near
        seen, near = self._memory[key]
        far = min((abs(each - math.log(candidate.ratio)) for each in near), default=0.0)
        known = Candidate("", 1.0, candidate.numbers) in self.known
        found = {
            axis: min(UNSEEN[axis], SEEN[axis] * (1 + 2 * far)) if seen and known else UNSEEN[axis] for axis in AXES
        }
        return {**found, "drop": found["error"], "trade": max(found["size"], found["latency"])}

    # One axis

    def _value(self, candidate: Candidate, axis: str) -> float:
        structure, numbers = self._structure(candidate, axis), self._numbers(candidate.numbers, axis)
        if not candidate.structure:
            return numbers
        if candidate.numbers == "float":
            return structure
        shift = self._correction(candidate, axis)
        return self._composed(axis, structure, numbers) * math.exp(shift)

    def _composed(self, axis: str, structure: float, numbers: float) -> float:
        if axis == "error":
            return structure + numbers
        fixed = self._fixed(axis)
        whole = max(self._numbers("float", axis) - fixed, FLOOR)
        return fixed + max(structure - fixed, 0.0) * max(numbers - fixed, 0.0) / whole

    def _fixed(self, axis: str) -> float:
        """Return the share of a cost that no form makes smaller."""
        return self.graph if axis == "size" else 0.5 * self.graph if axis == "packed" else 0.0

    def _numbers(self, name: str, axis: str) -> float:
        found = self.known.get(Candidate("", 1.0, name))
        measured = None if found is None else getattr(found, axis)
        if measured is not None:
            return max(float(measured), FLOOR)
        prior = NUMBERS[name]
        packed = 0.9 * prior.size if prior.coded is None else prior.coded
        value = packed if axis == "packed" else float(getattr(prior, axis))
        return value if axis == "error" else self._fixed(axis) + (1 - self._fixed(axis)) * value

    def _structure(self, candidate: Candidate, axis: str) -> float:
        key = "structure", candidate.structure, candidate.ratio, axis
        if key not in self._memory:
            found = self.known.get(candidate.bare)
            value = None if found is None else getattr(found, axis)
            if value is None:
                xs, shifts = self._curve(candidate.structure, axis)
                shift = float(np.interp(math.log(candidate.ratio), xs, shifts)) if xs else 0.0
                value = self._prior(candidate.structure, candidate.ratio, axis) * math.exp(shift)
            self._memory[key] = max(float(value), FLOOR)
        return float(self._memory[key])

    def _prior(self, structure: str, ratio: float, axis: str) -> float:
        if axis == "error":
            return float(MID * ((1 / ratio - 1) * 1.5) ** STEEP)
        power = (BY_PARAMS if structure.endswith("params") else POWERS)[axis]
        fixed = self._fixed(axis)
        return float(fixed + max(self._numbers("float", axis) - fixed, FLOOR) * ratio**power)

    def _curve(self, structure: str, axis: str) -> tuple[list[float], list[float]]:
        """Return by how much a structure was off its prior, in nats, over the logarithms of its ratios."""
        if ("curve", structure, axis) not in self._memory:
            points = sorted(
                (each.ratio, math.log(max(value, FLOOR)))
                for each, found in self.known.items()
                if each.structure == structure
                and each.numbers == "float"
                and (value := getattr(found, axis)) is not None
            )
            ratios = [ratio for ratio, _ in points]
            values = np.array([value for _, value in points])
            if axis == "error" and len(values):  # what leaves less loses no less
                values = np.maximum.accumulate(values[::-1])[::-1]
            off = [
                float(value - math.log(max(self._prior(structure, ratio, axis), FLOOR)))
                for ratio, value in zip(ratios, values, strict=True)
            ]
            self._memory["curve", structure, axis] = [math.log(ratio) for ratio in ratios], off
        found: tuple[list[float], list[float]] = self._memory["curve", structure, axis]
        return found

    def _correction(self, candidate: Candidate, axis: str) -> float:
        key = "pair", candidate.structure, candidate.numbers, axis
        if key not in self._memory:
            seen: dict[bool, list[float]] = defaultdict(list)
            for each, found in self.known.items():
                value = getattr(found, axis)
                if not each.structure or each.numbers != candidate.numbers or value is None:
                    continue
                made = self._composed(axis, self._structure(each, axis), self._numbers(each.numbers, axis))
                off = math.log(max(value, FLOOR) / max(made, FLOOR))
                seen[each.structure == candidate.structure].append(off)
            self._memory[key] = _shrunk(seen[True], _shrunk(seen[False], 0.0))
        return float(self._memory[key])


def _shrunk(values: list[float], prior: float) -> float:
    """Return the mean of values, with the prior as one more of them."""
    return (sum(values) + prior) / (len(values) + 1)
