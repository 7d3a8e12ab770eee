"""What each layer does to the answers at each level, as data."""

from __future__ import annotations

from dataclasses import dataclass

from onnxsqueeze.plain import plain
from onnxsqueeze.report.ranks import spearman
from onnxsqueeze.words import decibels

__all__ = ["LayerStudy", "Point", "Sensitivity"]

ENOUGH = 3
"""Layers from which on a rank correlation is given."""
ALIKE = 0.4
"""The rank correlation from which on predicted errors are said to rank the layers as measured ones do."""


@dataclass(frozen=True)
class Point:
    """One layer at one level.

    ``predicted`` is the relative squared error ‖Δy‖²/‖y‖² of the layer's own output by closed form, ``measured`` that
    of the model's worst output with this layer alone at this level; None where it is not known. ``share`` of the
    layer's cost is left.
    """

    label: str
    share: float
    predicted: float | None
    measured: float | None


@dataclass(frozen=True)
class LayerStudy:
    """One layer, by the name of its first output, with its parameters, at all its levels."""

    key: str
    name: str
    op: str
    parameters: int
    points: tuple[Point, ...]

    @property
    def worst(self) -> float:
        """The largest measured error, 0 if nothing was measured."""
        return max((p.measured for p in self.points if p.measured is not None), default=0.0)

    def at(self, label: str) -> Point | None:
        """Return the layer at a level, None if it has no such level."""
        return next((point for point in self.points if point.label == label), None)


@dataclass(frozen=True)
class Sensitivity:
    """All layers of a model, in its order, at all levels of a pass, mild to harsh."""

    model: str
    spec: str
    feeds: str
    levels: tuple[str, ...]
    layers: tuple[LayerStudy, ...]
    seconds: float

    @property
    def ranked(self) -> tuple[LayerStudy, ...]:
        """The layers, the most sensitive first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.worst))

    @property
    def correlation(self) -> dict[str, float | None]:
        """Spearman's rank correlation of predicted and measured errors over the layers, per level."""
        found: dict[str, float | None] = {}
        for label in self.levels:
            points = [p for layer in self.layers if (p := layer.at(label)) is not None]
            pairs = [(p.predicted, p.measured) for p in points if p.predicted is not None and p.measured is not None]
            found[label] = spearman(pairs) if len(pairs) >= ENOUGH else None
        return found

    @property
    def families(self) -> dict[str, LayerStudy]:
        """The most sensitive layer of each operator."""
        found: dict[str, LayerStudy] = {}
        for layer in self.ranked:
            found.setdefault(layer.op, layer)
        return found

    @property
    def verdict(self) -> str:
        """The most sensitive layer, and how far the closed form can be trusted, in one sentence."""
        if not self.layers:
            return f"No layer can be treated by {self.spec}."
        first = self.ranked[0]
        point = max(first.points, key=lambda p: p.measured or 0.0)
        told = f"{first.name or first.key} is the most sensitive layer: alone at {point.label}, the answers are at "
        told += f"{decibels(point.measured)} dB SQNR"
        known = [rank for rank in self.correlation.values() if rank is not None]
        if known:
            mean = sum(known) / len(known)
            told += (
                "; predicted errors rank the layers " if mean >= ALIKE else "; predicted errors do not rank the layers "
            )
            told += f"as measured ones do (correlation {mean:.2f})"
        return f"{told}."

    def to_dict(self) -> dict[str, object]:
        """Return the study as JSON values."""
        found = plain(self)
        assert isinstance(found, dict)
        return {**found, "correlation": plain(self.correlation)}
